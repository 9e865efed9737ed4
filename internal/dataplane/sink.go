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

// readLimit is up to how many elements reading them back is worth while. The kernel
// walks a map from its beginning for each datagram of a listing. Measured with Services
// of 10 endpoints on TCP and UDP, 33 elements each: 1,000 take 0.06 s and 4,000 take
// 0.28 s, while making them anew takes 0.13 s and 0.44 s (BenchmarkReadBack).
const readLimit = 150_000

// Sink keeps the rules of this network namespace at the last Snapshot. It is not safe
// for concurrent use.
type Sink struct {
	cfg    Config
	kernel kernel

	// program is what was compiled last and is in the kernel, once known is true.
	// known is false at first and after every failed write: the kernel is read then.
	program Program
	known   bool

	// generation is the ruleset's number after our last write or check; another one
	// means that somebody else wrote.
	generation uint32
	// unread says that elements are still to be read since then.
	unread bool
	layout string // hash of what cfg makes of the tables
	last   Written
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
// socket's buffer allows. After an error the next Apply finds out what is installed;
// what was there still stands, but for a load in parts that ended half way.
func (s *Sink) Apply(ctx context.Context, snapshot *service.Snapshot) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.known {
		return s.load(snapshot)
	}
	next := Compile(s.program, snapshot)
	if err := s.write(Diff(s.program.Ruleset, next.Ruleset)); err != nil {
		return err
	}
	s.program = next
	return nil
}

// load reads what is installed, takes over what it can, and brings it to snapshot. It
// makes everything anew where that is cheaper, or the only way.
func (s *Sink) load(snapshot *service.Snapshot) error {
	anew := Compile(Program{}, snapshot)
	if anew.Ruleset.elements() > readLimit {
		return s.install(anew)
	}
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(anew)
	}
	next := Compile(Adopt(have, snapshot), snapshot)
	if err := s.write(Diff(have, next.Ruleset)); err != nil {
		return s.install(anew) // it is not what it looked like
	}
	s.program, s.known = next, true
	return nil
}

// Check finds out whether somebody else changed our tables since the last write, and
// puts them right. It costs one small message where nobody wrote any rules, and the
// listing of our chains and rules, a few hundred, where somebody did. Only with elements
// does it read the elements too, whose listing can take long.
func (s *Sink) Check(ctx context.Context, elements bool) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.known {
		return nil // the next Apply finds out
	}
	generation, err := s.kernel.generation()
	if err != nil || generation == s.generation && !s.unread {
		return err
	}
	readable := s.program.Ruleset.elements() <= readLimit
	if readable && elements {
		return s.checkElements()
	}
	intact, err := s.intact()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(s.program)
	}
	s.generation, s.unread = generation, readable
	return nil
}

// checkElements compares the rules and all elements with what was written, and edits what differs.
func (s *Sink) checkElements() error {
	want := s.program
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(want)
	}
	changes := Diff(have, want.Ruleset)
	if len(changes.Classes) > 0 || s.write(changes) != nil {
		return s.install(want) // a chain is there still whose number somebody took
	}
	s.unread = false
	return nil
}

// Program returns what is installed.
func (s *Sink) Program() Program { return s.program }

// Last returns what the last Apply or Check wrote.
func (s *Sink) Last() Written { return s.last }

// intact says whether the chains and rules are those that we made.
func (s *Sink) intact() (bool, error) {
	sum, markers, err := s.kernel.skeleton()
	if err != nil {
		return false, err
	}
	for _, f := range ipfamily.All {
		if markers[f] != s.marker(sum) {
			return false, nil
		}
	}
	return true, nil
}

// read returns the elements that are installed. intact is false where the tables are not
// as this configuration makes them; everything is made anew then.
func (s *Sink) read() (have Ruleset, intact bool, err error) {
	generation, err := s.kernel.generation()
	if err != nil {
		return have, false, err
	}
	if intact, err := s.intact(); err != nil || !intact {
		return have, false, err
	}
	have, err = s.kernel.contents()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errForeign):
		return have, false, nil
	case err != nil:
		return have, false, err
	}
	s.generation = generation
	return have, true, nil
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
	for _, f := range ipfamily.All {
		b.addTable(f) // so that there is one to delete
		b.deleteTable(f)
		b.addLayout(s.cfg, f)
	}
	b.addChanges(changes)
	alone, err := s.commit(b)
	if err != nil {
		return err
	}
	s.program, s.known, s.unread = next, true, false
	s.last = Written{Elements: changes.Len(), Installed: true}
	return s.mark(alone)
}

// write carries out changes on tables that are otherwise intact.
func (s *Sink) write(changes Changes) error {
	if changes.Len() == 0 {
		return nil
	}
	b := &batch{}
	b.addChanges(changes)
	alone, err := s.commit(b)
	if err != nil {
		s.known = false
		return err
	}
	s.last.Elements = changes.Len()
	if len(changes.Classes) > 0 {
		return s.mark(alone)
	}
	return nil
}

// addChanges puts changes into b: the chains that are led to come first, those that
// nothing leads to any more go last.
func (b *batch) addChanges(changes Changes) {
	for _, f := range ipfamily.All {
		for _, ch := range changes.Classes {
			if ch.HasNew && !ch.HadOld {
				b.addClass(f, ch.Key, ch.New)
			}
		}
	}
	for _, phase := range changes.phases() {
		b.addEdits(phase)
	}
	for _, f := range ipfamily.All {
		for _, ch := range changes.Classes {
			if ch.HadOld {
				b.deleteClass(f, ch.Key, ch.Old)
			}
			if ch.HadOld && ch.HasNew {
				b.addClass(f, ch.Key, ch.New)
			}
		}
	}
}

// mark writes down what the chains and rules are now, for later to know them by. Where
// others wrote since we last looked, what they did must not be taken for ours: without a
// new marker the next Check makes everything anew.
func (s *Sink) mark(alone bool) error {
	if !alone {
		return nil
	}
	sum, old, err := s.kernel.skeleton()
	if err != nil {
		s.known = false
		return err
	}
	before := s.generation
	b := &batch{}
	for _, f := range ipfamily.All {
		if old[f] != "" {
			b.deleteChain(f, old[f])
		}
		b.addChain(f, s.marker(sum), nil)
	}
	switch alone, err := s.commit(b); {
	case err != nil:
		s.known = false
		return err
	case !alone:
		s.generation = before // they may be in what was hashed
		return s.unmark()
	}
	return nil
}

// unmark takes the markers away, so that the next Check makes everything anew.
func (s *Sink) unmark() error {
	_, markers, err := s.kernel.skeleton()
	if err == nil {
		b := &batch{}
		for f, name := range markers {
			b.deleteChain(f, name)
		}
		_, err = s.kernel.commit(b)
	}
	if err != nil {
		s.known = false
	}
	return err
}

// commit writes b, and notes the generation that it made if nobody else wrote since the
// last one that was noted, which alone says. Else that is left for Check to see.
func (s *Sink) commit(b *batch) (alone bool, err error) {
	before, err := s.kernel.generation()
	if err != nil {
		return false, err
	}
	transactions, err := s.kernel.commit(b)
	if err != nil {
		return false, fmt.Errorf("writing rules: %w", err)
	}
	after, err := s.kernel.generation()
	if err != nil {
		return false, err
	}
	if alone = before == s.generation && after == before+transactions; alone {
		s.generation = after
	}
	return alone, nil
}
