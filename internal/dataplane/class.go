package dataplane

import (
	"fmt"
	"strings"
	"time"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Class is a way to pick one endpoint of a set: one static chain, shared by all sets
// that are alike in it.
type Class struct {
	Scheduler service.Scheduler // never Maglev, which is SourceHash over its own slots
	Slots     uint32
	// Affinity is the timeout of client affinity; 0 for none.
	Affinity time.Duration
	// Local says that the set is of the endpoints on this node; 0 without affinity.
	Local bool
	// Owner is the id of the only set whose turns these are; 0 but for RoundRobin.
	Owner uint32
}

// The classes that every table has from the start.
const (
	refuseClass = 0 // no endpoints anywhere
	// Up to readyClasses, the number is that of the endpoints to pick from at random.
	dropClass  = readyClasses + 1 // endpoints, but none on this node
	firstClass = dropClass + 1    // the first number for others
)

// standard returns the number of a class that is there from the start.
func (c Class) standard() (uint32, bool) {
	return c.Slots, c == Class{Slots: c.Slots} && c.Slots <= readyClasses
}

// standardChain is the chain of such a number.
func standardChain(number uint32) string {
	switch number {
	case refuseClass:
		return chainRefuse
	case dropClass:
		return chainDrop
	default:
		return Class{Slots: number}.chain()
	}
}

var schedulerNames = [...]string{
	service.Random: "random", service.RoundRobin: "turns", service.SourceHash: "hash",
}

// chain returns the name of the chain of c, from which the kernel's tables are read
// back: [affinity_SECONDS_[local_]]SCHEDULER_SLOTS[_of_OWNER].
func (c Class) chain() string {
	var b strings.Builder
	if c.Affinity > 0 {
		fmt.Fprintf(&b, "affinity_%d_", c.Affinity/time.Second)
		if c.Local {
			b.WriteString("local_")
		}
	}
	fmt.Fprintf(&b, "%s_%d", schedulerNames[c.Scheduler], c.Slots)
	if c.Owner != 0 {
		fmt.Fprintf(&b, "_of_%d", c.Owner)
	}
	return b.String()
}

// classOf reads what chain writes.
func classOf(chain string) (c Class, ok bool) {
	rest := chain
	var seconds uint32
	if n, err := fmt.Sscanf(rest, "affinity_%d_", &seconds); err == nil && n == 1 {
		c.Affinity = time.Duration(seconds) * time.Second
		rest = strings.TrimPrefix(rest, fmt.Sprintf("affinity_%d_", seconds))
		rest, c.Local = strings.CutPrefix(rest, "local_")
	}
	rest, owner, owned := strings.Cut(rest, "_of_")
	name, slots, _ := strings.Cut(rest, "_")
	for s, n := range schedulerNames {
		if n == name {
			c.Scheduler = service.Scheduler(s)
		}
	}
	_, err := fmt.Sscan(slots, &c.Slots)
	if owned && err == nil {
		_, err = fmt.Sscan(owner, &c.Owner)
	}
	return c, err == nil && c.chain() == chain
}

// addClass adds the chain of a class, and what leads to it.
func (b *batch) addClass(f ipfamily.Family, number uint32, c Class) {
	name := c.chain()
	b.addChain(f, name, nil)
	if c.Affinity > 0 {
		shapeOf(f).addKnownRules(b, c)
		shapeOf(f).addAffinityRules(b, name, c)
	} else {
		shapeOf(f).addPickRules(b, name, c)
	}
	b.addElements(f, mapDispatch, listOf(element{key: native(number), goTo: name}))
}

// deleteClass takes both away.
func (b *batch) deleteClass(f ipfamily.Family, number uint32, c Class) {
	b.deleteElements(f, mapDispatch, listOf(element{key: native(number)}))
	b.deleteChain(f, c.chain())
	if c.Affinity > 0 {
		b.deleteChain(f, knownChain(c))
	}
}

// number returns the number of a class for the set, a new one where it has none. It is
// false when all are taken; the set is refused then.
func (c *compiler) number(key SlotKey, class Class) (uint32, bool) {
	if n, ok := class.standard(); ok {
		c.useClass(key, Class{})
		return n, true
	}
	c.useClass(key, class)
	if n, ok := c.numbers.Get(class); ok {
		return n, true
	}
	for try := 0; ; try++ {
		for n := uint32(firstClass); n <= MaxEndpoints; n++ {
			if _, taken := c.byNumber.Get(n); !taken {
				c.byNumber.Set(n, class)
				c.numbers.Set(class, n)
				return n, true
			}
		}
		if try > 0 || !c.dropUnused() {
			c.useClass(key, Class{})
			return refuseClass, false
		}
	}
}

// useClass notes which class the set uses; the zero Class is one of the standard ones.
func (c *compiler) useClass(key SlotKey, class Class) {
	old, had := c.classes.Get(key)
	if had && old == class {
		return
	}
	if had {
		if n, _ := c.uses.Get(old); n > 1 {
			c.uses.Set(old, n-1)
		} else {
			c.uses.Delete(old)
			c.idle = append(c.idle, old)
		}
		c.classes.Delete(key)
	}
	if class != (Class{}) {
		n, _ := c.uses.Get(class)
		c.uses.Set(class, n+1)
		c.classes.Set(key, class)
	}
}

// keepIdle is how many classes may be kept that nothing uses: the next set of that many
// endpoints is likely soon, but each is a chain, and all are read when one more comes.
const keepIdle = 32

// dropClasses forgets classes that are used no longer: those of one set only at once,
// others when they are too many.
func (c *compiler) dropClasses() {
	for _, class := range c.idle {
		if class.Owner != 0 {
			c.dropClass(class)
		}
	}
	if len(c.idle) > 0 && c.numbers.Len()-c.uses.Len() > keepIdle {
		c.dropUnused()
	}
}

// dropClass forgets the class where nothing uses it.
func (c *compiler) dropClass(class Class) bool {
	if n, _ := c.uses.Get(class); n > 0 {
		return false
	}
	number, ok := c.numbers.Get(class)
	if ok {
		c.numbers.Delete(class)
		c.byNumber.Delete(number)
	}
	return ok
}

// dropUnused forgets all classes that nothing uses, and says whether there were any.
func (c *compiler) dropUnused() (dropped bool) {
	for n := uint32(firstClass); n <= MaxEndpoints; n++ {
		if class, ok := c.byNumber.Get(n); ok {
			dropped = c.dropClass(class) || dropped
		}
	}
	return dropped
}
