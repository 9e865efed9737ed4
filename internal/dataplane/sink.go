package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Sink keeps the rules of this network namespace at the last Snapshot. It is not safe
// for concurrent use.
type Sink struct {
	cfg    Config
	kernel kernel
	guard  guard

	// program is what was compiled last and is in the kernel, once known is true.
	// known is false at first and after every failed write: the kernel is read then.
	program Program
	known   bool
	// touched says that others wrote to our tables, until that is put right.
	touched bool
	refused refusals
	layout  string // hash of what cfg makes of the tables
	last    Written
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
// socket's buffer allows. A Service that the kernel refuses stays as it was and is named
// in Program().Refused; the others go on. After an error the next Apply finds out what
// is installed; what was there still stands, but for a load in parts that ended half way.
func (s *Sink) Apply(ctx context.Context, snapshot *service.Snapshot) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.guard.stand()
	gone := s.refused.forget(snapshot)
	err := s.bring(s.refused.without(snapshot, s.program.Snapshot))
	if errors.Is(err, unix.EOPNOTSUPP) { // which nothing of a Service can be
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	if errors.Is(err, errRefused) {
		if found, findErr := s.setApart(snapshot); !found || findErr != nil {
			return errors.Join(err, findErr)
		}
		err = s.bring(s.refused.without(snapshot, s.program.Snapshot))
	}
	if err == nil {
		s.report(gone)
	}
	return err
}

// bring makes the kernel's rules those of snapshot. Where it refuses, because others
// took away what the change builds on, it looks at what is there, once.
func (s *Sink) bring(snapshot *service.Snapshot) error {
	if s.known {
		if err := s.advance(snapshot); !errors.Is(err, errRefused) {
			return err
		}
	}
	return s.load(snapshot)
}

// advance writes what differs from the last Snapshot.
func (s *Sink) advance(snapshot *service.Snapshot) error {
	next := Compile(s.program, snapshot)
	if err := s.write(Diff(s.program.Ruleset, next.Ruleset)); err != nil {
		return err
	}
	s.program = next
	return nil
}

// load reads what is installed, takes over what it can, and brings it to snapshot: what
// the clients' affinity is, only the kernel knows. It makes everything anew where that
// is the only way.
func (s *Sink) load(snapshot *service.Snapshot) error {
	anew := func() error { return s.install(Compile(Program{}, snapshot)) }
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return anew()
	}
	next := Compile(Adopt(have, snapshot), snapshot)
	switch err := s.write(Diff(have, next.Ruleset)); {
	case errors.Is(err, errRefused):
		return anew() // it is not what it looked like
	case err != nil:
		return err // what is there stays, and with it what is known of clients
	}
	s.program, s.known = next, true
	return nil
}

// Check finds out whether somebody else changed our tables since the last Apply or
// Check, and puts them right. It costs one system call where nobody did.
func (s *Sink) Check(ctx context.Context) error {
	s.last = Written{}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.guard.stand()
	if !s.known {
		return nil // the next Apply finds out
	}
	if err := s.listen(); err != nil || !s.touched {
		return err
	}
	return s.repair()
}

// repair compares everything with what was written, and edits what differs: what clients
// have by affinity would be lost with the tables.
func (s *Sink) repair() error {
	have, intact, err := s.read()
	if err != nil {
		return err
	}
	if !intact {
		return s.install(s.program)
	}
	changes := Diff(have, s.program.Ruleset)
	if len(changes.Classes()) > 0 || s.write(changes) != nil {
		return s.install(s.program) // a chain is there still whose number somebody took
	}
	s.known = true
	return nil
}

// listen hears what others did until now.
func (s *Sink) listen() error {
	touched, err := s.kernel.monitor.touched()
	s.touched = s.touched || touched
	return err
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
// as this configuration makes them; everything is made anew then. What others do from
// now on is noticed.
func (s *Sink) read() (have Ruleset, intact bool, err error) {
	if err := s.kernel.ready(); err != nil {
		return have, false, err
	}
	if err := s.listen(); err != nil {
		return have, false, err
	}
	s.touched = false
	intact, err = s.intact()
	if err == nil && intact {
		have, err = s.kernel.contents()
	}
	switch {
	case !intact && err == nil:
		return have, false, nil
	// Others may not pause for long: what cannot be read is made anew.
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errForeign), errors.Is(err, errTorn):
		return have, false, nil
	case err != nil:
		return have, false, err
	}
	return have, true, nil
}

// marker names the layout, and what the kernel made of it.
func (s *Sink) marker(sum string) string { return markerPrefix + s.layout + "_" + sum }

// install makes both tables anew with everything in them.
func (s *Sink) install(next Program) error {
	s.known = false
	if err := s.kernel.ready(); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return err
	}
	s.touched = false // what was written before this goes
	b := s.tables()
	n := b.addChanges(Diff(Ruleset{}, next.Ruleset))
	if err := s.commit(b); err != nil {
		return err
	}
	s.program, s.known = next, true
	s.last = Written{Elements: n, Installed: true}
	return s.mark()
}

// tables makes both tables anew without anything of Services.
func (s *Sink) tables() *batch {
	b := &batch{}
	for _, f := range ipfamily.All {
		b.addTable(f) // so that there is one to delete
		b.deleteTable(f)
		b.addLayout(s.cfg, f)
	}
	return b
}

// write carries out changes on tables that are otherwise intact.
func (s *Sink) write(changes Changes) error {
	b := &batch{}
	n := b.addChanges(changes)
	if n == 0 {
		return nil
	}
	if err := s.commit(b); err != nil {
		return err
	}
	s.last.Elements += n
	if len(changes.Classes()) > 0 {
		return s.mark()
	}
	return nil
}

// commit writes b. After an error nobody knows what is installed.
func (s *Sink) commit(b *batch) error {
	if err := s.kernel.commit(b); err != nil {
		s.known = false
		return fmt.Errorf("writing rules: %w", err)
	}
	return nil
}

// addChanges puts changes into b, and returns how many entries they are. The chains that
// are led to come first, those that nothing leads to any more go last.
func (b *batch) addChanges(changes Changes) int {
	classes := changes.Classes()
	for _, f := range ipfamily.All {
		for _, ch := range classes {
			if ch.HasNew && !ch.HadOld {
				b.addClass(f, ch.Key, ch.New)
			}
		}
	}
	edits := changes.phases()
	for _, phase := range edits.sets {
		b.addEdits(phase)
	}
	for _, f := range ipfamily.All {
		for _, ch := range classes {
			if ch.HadOld {
				b.deleteClass(f, ch.Key, ch.Old)
			}
			if ch.HadOld && ch.HasNew {
				b.addClass(f, ch.Key, ch.New)
			}
		}
	}
	return edits.len + len(classes)
}

// mark writes down what the chains and rules are now, for later to know them by. Where
// others wrote meanwhile, what they did must not be taken for ours: it takes the old
// marker away, and without one everything is made anew.
func (s *Sink) mark() error {
	sum, old, err := s.kernel.skeleton()
	if errors.Is(err, errTorn) {
		return nil // the rules are right; without a marker the next agent makes them anew
	}
	if err == nil {
		err = s.listen()
	}
	if err != nil {
		s.known = false
		return err
	}
	b := &batch{}
	for _, f := range ipfamily.All {
		if old[f] != "" {
			b.deleteChain(f, old[f])
		}
		if !s.touched {
			b.addChain(f, s.marker(sum), nil)
		}
	}
	return s.commit(b)
}
