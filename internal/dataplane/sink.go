package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Sink keeps the rules of this network namespace at the last Snapshot. It is not safe
// for concurrent use.
type Sink struct {
	cfg    Config
	kernel kernel

	// program is what was compiled last and is in the kernel, once known is true.
	// known is false at first and after every failed write: the kernel is read then.
	program Program
	known   bool
	classes map[ipfamily.Family]map[uint32]bool

	// generation is the ruleset's number after our last write or check; another one
	// means that somebody else wrote.
	generation uint32
	layout     string // hash of what cfg makes of the tables
	last       Written
}

// Written says what the last Apply or Check wrote.
type Written struct {
	// Elements is how many elements were added, deleted or changed.
	Elements int
	// Installed says that the tables were made anew.
	Installed bool
}

// NewSink returns a sink for the network namespace of the calling thread.
func NewSink(cfg Config) *Sink {
	b := &batch{}
	for _, f := range ipfamily.All {
		b.addLayout(cfg, f)
	}
	h := sha256.New()
	for _, m := range b.messages {
		h.Write(m.Data)
	}
	return &Sink{cfg: cfg, layout: hex.EncodeToString(h.Sum(nil))[:16]}
}

// Probe returns ErrPermission, or whatever else stands between this process and
// nftables.
func (s *Sink) Probe() error {
	_, err := s.kernel.generation()
	return err
}

// Apply makes the kernel's rules those of snapshot, in one transaction where the
// socket's buffer allows. After an error the rules that were there still stand, and the
// next Apply finds out what is installed.
func (s *Sink) Apply(ctx context.Context, snapshot *service.Snapshot) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.known {
		return s.load(snapshot)
	}
	next := Compile(s.program, snapshot)
	changes := Diff(s.program.Ruleset, next.Ruleset)
	if err := s.write(changes); err != nil {
		return err
	}
	s.program = next
	return nil
}

// load reads what is installed, takes over what it can, and brings it to snapshot.
func (s *Sink) load(snapshot *service.Snapshot) error {
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(Compile(Program{}, snapshot))
	}
	next := Compile(Adopt(have, snapshot), snapshot)
	changes := Diff(have, next.Ruleset)
	if err := s.write(changes); err != nil {
		return err
	}
	s.program, s.known = next, true
	return nil
}

// Check finds out whether somebody else changed our tables since the last write, and
// puts them right. It costs one small message where nobody wrote any rules.
func (s *Sink) Check(ctx context.Context) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.program.Snapshot == nil {
		return nil // nothing was asked for yet
	}
	if !s.known {
		return s.load(s.program.Snapshot)
	}
	generation, err := s.kernel.generation()
	if err != nil || generation == s.generation {
		return err
	}
	want := s.program
	s.known = false // until it is seen to be right
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(want)
	}
	changes := Diff(have, want.Ruleset)
	if err := s.write(changes); err != nil {
		return err
	}
	s.known = true
	return nil
}

// Program returns what is installed.
func (s *Sink) Program() Program { return s.program }

// Last returns what the last Apply or Check wrote.
func (s *Sink) Last() Written { return s.last }

// read returns the elements that are installed. intact is false where the chains and
// rules are not as this configuration makes them; everything is made anew then.
func (s *Sink) read() (have Ruleset, intact bool, err error) {
	generation, err := s.kernel.generation()
	if err != nil {
		return have, false, err
	}
	sum, markers, err := s.kernel.skeleton()
	if err != nil {
		return have, false, err
	}
	for _, f := range ipfamily.All {
		if markers[f] != s.marker(sum) {
			return have, false, nil
		}
	}
	elements, err := s.kernel.contents()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return have, false, nil
	case err != nil:
		return have, false, err
	case len(elements.classes[ipfamily.IPv4]) <= readyClasses || len(elements.classes[ipfamily.IPv6]) <= readyClasses:
		return have, false, nil // somebody emptied the dispatch map
	}
	s.generation, s.classes = generation, elements.classes
	return elements.ruleset(), true, nil
}

// marker names the layout, and what the kernel made of it.
func (s *Sink) marker(sum string) string { return markerPrefix + s.layout + "_" + sum }

// install makes both tables anew with everything in them.
func (s *Sink) install(next Program) error {
	s.known = false
	var err error
	if s.generation, err = s.kernel.generation(); err != nil {
		return err // what was written before this goes
	}
	changes := Diff(Ruleset{}, next.Ruleset)
	b := &batch{}
	s.classes = map[ipfamily.Family]map[uint32]bool{}
	for _, f := range ipfamily.All {
		b.addTable(f) // so that there is one to delete
		b.deleteTable(f)
		b.addLayout(s.cfg, f)
		s.classes[f] = map[uint32]bool{}
		for n := range uint32(readyClasses + 1) {
			s.classes[f][n] = true
		}
	}
	s.addChanges(b, changes)
	if err := s.commit(b); err != nil {
		return err
	}
	if err := s.mark(); err != nil {
		return err
	}
	s.program, s.known = next, true
	s.last = Written{Elements: changes.Len(), Installed: true}
	return nil
}

// write carries out changes on tables that are otherwise intact.
func (s *Sink) write(changes Changes) error {
	if changes.Len() == 0 {
		return nil
	}
	b := &batch{}
	grown := s.addChanges(b, changes)
	if err := s.commit(b); err != nil {
		s.known = false
		return err
	}
	s.last.Elements = changes.Len()
	if grown {
		return s.mark()
	}
	return nil
}

// addChanges puts changes into b, with the chains they need, and says whether any are
// new.
func (s *Sink) addChanges(b *batch, changes Changes) (grown bool) {
	for _, ch := range changes.Frontends {
		f, n := ipfamily.Of(ch.Key.Addr), ch.New.Endpoints
		if ch.HasNew && !s.classes[f][n] {
			b.addClass(f, n)
			s.classes[f][n] = true
			grown = true
		}
	}
	for _, phase := range changes.phases() {
		b.addEdits(phase)
	}
	return grown
}

// mark writes down what the chains and rules are now, for a later start to know them by.
func (s *Sink) mark() error {
	sum, old, err := s.kernel.skeleton()
	if err != nil {
		s.known = false
		return err
	}
	b := &batch{}
	for _, f := range ipfamily.All {
		if old[f] != "" {
			b.deleteChain(f, old[f])
		}
		b.addChain(f, s.marker(sum), nil)
	}
	if err := s.commit(b); err != nil {
		s.known = false
		return err
	}
	return nil
}

// commit writes b and notes the generation that it made. Where somebody else wrote in
// between, that is left for Check to see.
func (s *Sink) commit(b *batch) error {
	before, err := s.kernel.generation()
	if err != nil {
		return err
	}
	if err := s.kernel.commit(b); err != nil {
		return fmt.Errorf("writing rules: %w", err)
	}
	after, err := s.kernel.generation()
	if err != nil {
		return err
	}
	transactions := uint32(len(split(b.messages, s.kernel.limit)))
	if before == s.generation && after == before+transactions {
		s.generation = after
	}
	return nil
}
