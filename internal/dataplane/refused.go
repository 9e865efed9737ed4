package dataplane

import (
	"errors"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// refusals are the Services that the kernel did not accept as they are: what it had of
// them before stays, until they change. The zero value has none.
type refusals struct {
	services map[types.NamespacedName]refused
}

type refused struct {
	service *service.Service // the version that was refused
	err     error
}

// forget drops those that have changed: they are tried again. It returns their names.
func (r *refusals) forget(snapshot *service.Snapshot) (names []types.NamespacedName) {
	for name, old := range r.services {
		if now, ok := snapshot.Services.Get(name); !ok || now != old.service {
			delete(r.services, name)
			names = append(names, name)
		}
	}
	return names
}

// without returns snapshot with the refused Services as they are in last, which may be
// nil.
func (r *refusals) without(snapshot, last *service.Snapshot) *service.Snapshot {
	if len(r.services) == 0 {
		return snapshot
	}
	out := *snapshot
	edit := out.Services.Edit()
	for name := range r.services {
		edit.Delete(name)
		if last == nil {
			continue
		}
		if before, ok := last.Services.Get(name); ok {
			edit.Set(name, before)
		}
	}
	out.Services = edit.Map()
	return &out
}

// setApart finds the Services for which the kernel refuses snapshot, and says whether
// there are any. It returns ErrKernel where none is to blame. Nothing in the kernel
// changes.
func (s *Sink) setApart(snapshot *service.Snapshot) (bool, error) {
	if err := s.kernel.try(s.tables()); errors.Is(err, errRefused) {
		return false, ErrKernel
	} else if err != nil {
		return false, err
	}
	last := s.program.Snapshot
	if last == nil {
		last = &service.Snapshot{}
	}
	var suspects []*service.Service
	for ch := range persistent.Diff(last.Services, snapshot.Services, func(a, b *service.Service) bool { return a == b }) {
		if ch.HasNew {
			suspects = append(suspects, ch.New)
		}
	}
	before := len(s.refused.services)
	err := s.halve(suspects)
	return len(s.refused.services) > before, err
}

// halve tries the suspects together, and where they are refused each half of them.
func (s *Sink) halve(suspects []*service.Service) error {
	if len(suspects) == 0 {
		return nil
	}
	services := persistent.Map[types.NamespacedName, *service.Service]{}.Edit()
	for _, svc := range suspects {
		services.Set(svc.Name, svc)
	}
	alone := Compile(Program{}, &service.Snapshot{Services: services.Map()})
	b := s.tables()
	b.addChanges(Diff(Ruleset{}, alone.Ruleset))
	err := s.kernel.try(b)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errRefused):
		return err
	case len(suspects) > 1:
		half := len(suspects) / 2
		return errors.Join(s.halve(suspects[:half]), s.halve(suspects[half:]))
	}
	if s.refused.services == nil {
		s.refused.services = map[types.NamespacedName]refused{}
	}
	s.refused.services[suspects[0].Name] = refused{suspects[0], err}
	return nil
}

// report names the refused Services in the Program, and no longer those of gone.
func (s *Sink) report(gone []types.NamespacedName) {
	if len(s.refused.services)+len(gone) == 0 {
		return
	}
	edit := s.program.Refused.Edit()
	for _, name := range gone {
		if svc, ok := s.program.Snapshot.Services.Get(name); !ok || svc == nil {
			edit.Delete(name)
		}
	}
	for name, r := range s.refused.services {
		edit.Set(name, r.err)
	}
	s.program.Refused = edit.Map()
}
