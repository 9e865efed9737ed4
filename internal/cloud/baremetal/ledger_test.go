package baremetal

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/ipfamily"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// poolOf returns an AddressPool that is age minutes younger than the oldest there can be.
func poolOf(name string, age int, addresses ...v1alpha1.AddressRange) v1alpha1.AddressPool {
	return v1alpha1.AddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(age) * time.Minute))},
		Spec:       v1alpha1.AddressPoolSpec{Addresses: addresses},
	}
}

func ownerOf(name string) Owner {
	return Owner{NamespacedName: types.NamespacedName{Namespace: "default", Name: name}, UID: types.UID(name)}
}

func request(name string, age int, families ...ipfamily.Family) Request {
	if len(families) == 0 {
		families = []ipfamily.Family{ipfamily.IPv4}
	}
	return Request{Owner: ownerOf(name), Created: epoch.Add(time.Duration(age) * time.Minute), Families: families}
}

func ledgerOf(pools ...v1alpha1.AddressPool) *ledger { return newLedger(decodePools(pools), nil, nil) }

func strs(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return fmt.Sprint(out)
}

// assign asserts what r gets, and why it does not get more: "" or "Reason: message".
func assign(t *testing.T, l *ledger, r Request, want, why string) {
	t.Helper()
	addrs, pending := l.assign(r)
	got := ""
	if pending != nil {
		got = pending.Reason + ": " + pending.Message
	}
	if strs(addrs) != want || got != why {
		t.Errorf("%s got %s, %q\n want %s, %q", r.Owner.Name, strs(addrs), got, want, why)
	}
}

func TestAssign(t *testing.T) {
	v4, v6 := ipfamily.IPv4, ipfamily.IPv6
	at := func(r Request, addrs ...string) Request {
		for _, a := range addrs {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
		}
		r.AddressesFrom = "spec.loadBalancerIP"
		return r
	}
	from := func(r Request, pool string) Request {
		r.Pool, r.PoolFrom = pool, "metadata.annotations[fairlead.dev/pool]"
		return r
	}
	partial := func(r Request) Request { r.Partial = true; return r }
	blue := poolOf("blue", 0, "192.0.2.0/31", "2001:db8::/127")
	green := poolOf("green", 1, "192.0.2.8/31")

	t.Run("lowest first, pool by pool, and the same on every call", func(t *testing.T) {
		l := ledgerOf(green, blue)
		for range 2 {
			assign(t, l, request("a", 0), "[192.0.2.0]", "")
			assign(t, l, request("b", 0), "[192.0.2.1]", "")
			assign(t, l, request("c", 0), "[192.0.2.8]", "")
		}
	})
	t.Run("families", func(t *testing.T) {
		l := ledgerOf(blue)
		assign(t, l, request("a", 0, v6, v4), "[2001:db8:: 192.0.2.0]", "")
		assign(t, l, request("a", 0, v4), "[192.0.2.0]", "")
		assign(t, l, request("b", 0, v6), "[2001:db8::]", "")
		assign(t, l, request("c", 0, v4, v6), "[192.0.2.1 2001:db8::1]", "")
		assign(t, l, partial(request("d", 0, v4, v6)), "[]", "PoolExhausted: no IPv6 address is free in the pools tried: blue")
	})
	t.Run("both or none, or one of two", func(t *testing.T) {
		l := ledgerOf(green)
		why := "NoPool: no AddressPool assigns IPv6 addresses by itself; there are: green"
		assign(t, l, request("a", 0, v4, v6), "[]", why)
		assign(t, l, partial(request("b", 0, v4, v6)), "[192.0.2.8]", "")
		assign(t, l, request("c", 0), "[192.0.2.9]", "")
		assign(t, l, request("c", 0, v4, v6), "[192.0.2.9]", why)
	})
	t.Run("requests", func(t *testing.T) {
		l := ledgerOf(blue, green)
		assign(t, l, at(request("a", 0), "192.0.2.9"), "[192.0.2.9]", "")
		assign(t, l, at(request("b", 0), "192.0.2.9"), "[]", "AddressTaken: spec.loadBalancerIP: 192.0.2.9 belongs to the Service default/a")
		assign(t, l, at(request("c", 0), "203.0.113.1"), "[]", "AddressNotInPool: spec.loadBalancerIP: 203.0.113.1 is in no AddressPool; there are: blue, green")
		assign(t, l, from(at(request("d", 0), "192.0.2.8"), "blue"), "[]", `AddressNotInPool: spec.loadBalancerIP: 192.0.2.8 is not in the AddressPool "blue" of metadata.annotations[fairlead.dev/pool]`)
		assign(t, l, from(request("e", 0), "red"), "[]", `PoolNotFound: metadata.annotations[fairlead.dev/pool]: there is no AddressPool "red"; there are: blue, green`)
		assign(t, l, from(request("f", 0, v6), "green"), "[]", `NoPool: metadata.annotations[fairlead.dev/pool]: the AddressPool "green" has no IPv6 addresses`)
		assign(t, l, from(request("g", 0), "green"), "[192.0.2.8]", "")
		assign(t, l, from(request("h", 0), "green"), "[]", "PoolExhausted: no IPv4 address is free in the pools tried: green")
		assign(t, l, at(request("i", 0, v4, v6), "2001:db8::1"), "[192.0.2.0 2001:db8::1]", "")
	})
	t.Run("what it has stays while a request cannot be met, and moves when it can", func(t *testing.T) {
		l := ledgerOf(blue, green)
		assign(t, l, request("a", 0), "[192.0.2.0]", "")
		assign(t, l, request("b", 0), "[192.0.2.1]", "")
		assign(t, l, at(request("a", 0), "192.0.2.1"), "[192.0.2.0]", "AddressTaken: spec.loadBalancerIP: 192.0.2.1 belongs to the Service default/b")
		l.release(ownerOf("b"))
		if got := strs(l.owners.Held(ownerOf("a"))); got != "[192.0.2.1]" {
			t.Errorf("a has %s after the release, want 192.0.2.1", got)
		}
		assign(t, l, from(request("a", 0), "green"), "[192.0.2.8]", "")
		assign(t, l, request("a", 0), "[192.0.2.8]", "")
	})
	t.Run("pools that shrink, go and come back take nothing", func(t *testing.T) {
		l := ledgerOf(blue)
		r := from(request("a", 0), "blue")
		assign(t, l, r, "[192.0.2.0]", "")
		l.setPools(decodePools([]v1alpha1.AddressPool{poolOf("blue", 0, "192.0.2.1/32")}))
		assign(t, l, r, "[192.0.2.0]", "")
		l.setPools(nil)
		assign(t, l, r, "[192.0.2.0]", "")
		l.setPools(decodePools([]v1alpha1.AddressPool{blue}))
		assign(t, l, request("b", 0), "[192.0.2.1]", "")
	})
	t.Run("a pool that overlaps an older one assigns nothing", func(t *testing.T) {
		l := ledgerOf(blue, poolOf("young", 5, "192.0.2.1-192.0.2.4"))
		why := `the AddressPool "young" overlaps older ones and assigns nothing: blue`
		assign(t, l, from(request("a", 0), "young"), "[]", "PoolConflict: metadata.annotations[fairlead.dev/pool]: "+why)
		assign(t, l, at(request("b", 0), "192.0.2.3"), "[]", "PoolConflict: spec.loadBalancerIP: "+why)
		assign(t, l, at(request("c", 0), "192.0.2.1"), "[192.0.2.1]", "")
		p, _ := l.pool("young")
		want := Report{Capacity: v1alpha1.FamilyCounts{IPv4: 4}, Assigned: v1alpha1.FamilyCounts{IPv4: 1}, Overlaps: []string{"blue"}}
		if diff := cmp.Diff(want, p.report(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
	})
	t.Run("without autoAssign only on request", func(t *testing.T) {
		manual := poolOf("manual", 0, "192.0.2.0/30")
		manual.Spec.AutoAssign = new(false)
		l := ledgerOf(manual)
		assign(t, l, request("a", 0), "[]", "NoPool: no AddressPool assigns IPv4 addresses by itself; there are: manual")
		assign(t, l, from(request("b", 0), "manual"), "[192.0.2.0]", "")
		assign(t, l, at(request("c", 0), "192.0.2.3"), "[192.0.2.3]", "")
	})
	t.Run("a Service is not its successor of the same name", func(t *testing.T) {
		l := ledgerOf(poolOf("one", 0, "192.0.2.0/32"))
		assign(t, l, request("a", 0), "[192.0.2.0]", "")
		next := request("a", 1)
		next.Owner.UID = "another"
		assign(t, l, next, "[]", "PoolExhausted: no IPv4 address is free in the pools tried: one")
		l.release(ownerOf("a"))
		assign(t, l, next, "[192.0.2.0]", "")
	})
}

func TestLineOfWaiting(t *testing.T) {
	explicit := request("explicit", 9)
	explicit.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	l := ledgerOf(poolOf("blue", 0, "192.0.2.0/31"))
	for _, name := range []string{"x", "y"} {
		_, _ = l.assign(request(name, 0))
	}
	for _, r := range []Request{request("young", 3), request("old", 1), explicit, request("middle", 2)} {
		if _, pending := l.assign(r); pending == nil {
			t.Fatalf("%s was served from an exhausted pool", r.Owner.Name)
		}
	}
	looks := func() (names []string) {
		for _, n := range l.look {
			names = append(names, n.Name)
		}
		l.look = nil
		return names
	}
	looks()
	for _, step := range []struct {
		release string
		serves  []string
	}{
		{"y", []string{"explicit"}}, // 192.0.2.1
		{"x", []string{"old"}},
		{"explicit", []string{"middle"}},
		{"young", nil}, // waits no longer, and had nothing
		{"old", nil},
	} {
		l.release(ownerOf(step.release))
		if diff := cmp.Diff(step.serves, looks()); diff != "" {
			t.Errorf("after %s went (-want +got):\n%s", step.release, diff)
		}
	}
}

// TestLedgerHasNoDoubleAndNoLeak does random things and then looks at all of the ledger.
func TestLedgerHasNoDoubleAndNoLeak(t *testing.T) {
	choices := []v1alpha1.AddressPool{
		poolOf("a", 0, "192.0.2.0/31", "2001:db8::/127"), poolOf("b", 1, "192.0.2.2-192.0.2.4"), poolOf("c", 2, "192.0.2.4/31", "2001:db8::2/127"),
	}
	rapid.Check(t, func(t *rapid.T) {
		l := ledgerOf()
		alive := map[Owner]Request{}
		service := rapid.Custom(func(t *rapid.T) Request {
			n := rapid.IntRange(0, 9).Draw(t, "service")
			r := request(fmt.Sprint("s", n), n, rapid.SampledFrom([][]ipfamily.Family{
				{ipfamily.IPv4}, {ipfamily.IPv6}, {ipfamily.IPv4, ipfamily.IPv6}}).Draw(t, "families")...)
			r.Partial = rapid.Bool().Draw(t, "partial")
			r.Pool = rapid.SampledFrom([]string{"", "", "", "a", "c"}).Draw(t, "pool")
			return r
		})
		t.Repeat(map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				r := service.Draw(t, "request")
				alive[r.Owner] = r
				_, _ = l.assign(r)
			},
			"release": func(t *rapid.T) {
				r := service.Draw(t, "request")
				delete(alive, r.Owner)
				l.release(r.Owner)
			},
			"pools": func(t *rapid.T) {
				var pools []v1alpha1.AddressPool
				for _, p := range choices {
					if rapid.Bool().Draw(t, p.Name) {
						pools = append(pools, p)
					}
				}
				had := held(l)
				l.setPools(decodePools(pools))
				for owner, addrs := range had {
					if alive[owner].Pool == "" && !contained(l.owners.Held(owner), addrs) {
						t.Fatalf("%s lost some of %s to an edit of pools", owner.Name, strs(addrs))
					}
				}
			},
			"": func(t *rapid.T) { checkLedger(t, l, alive) },
		})
	})
}

func held(l *ledger) map[Owner][]netip.Addr {
	out := map[Owner][]netip.Addr{}
	for addr, owner := range l.owners.All {
		out[owner] = append(out[owner], addr)
	}
	return out
}

func contained(in, addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(in, a) })
}

func checkLedger(t *rapid.T, l *ledger, alive map[Owner]Request) {
	for owner, addrs := range held(l) {
		r, ok := alive[owner]
		if !ok || len(addrs) > len(r.Families) {
			t.Fatalf("%s (alive: %t) has %s and %d families", owner.Name, ok, strs(addrs), len(r.Families))
		}
	}
	for _, p := range l.pools {
		var want [2]int
		for addr := range l.owners.All {
			if p.addresses.Contains(addr) {
				want[ipfamily.Of(addr)]++
			}
		}
		if p.assigned != want {
			t.Fatalf("pool %s counts %v, has %v", p.name, p.assigned, want)
		}
	}
	if len(l.waiting) != len(l.places) || !slices.IsSortedFunc(l.waiting, compareWaiters) {
		t.Fatalf("the line of %d is out of order, or not what %d places say", len(l.waiting), len(l.places))
	}
	for _, w := range l.waiting {
		before := len(l.owners.Held(w.Owner))
		if complete, _ := l.try(w.Request); complete || len(l.owners.Held(w.Owner)) != before {
			t.Fatalf("%s waits for what is free", w.Owner.Name)
		}
	}
	for owner, r := range alive {
		if _, waits := l.places[owner]; !waits && len(l.owners.Held(owner)) != len(r.Families) {
			t.Fatalf("%s neither has all it wants nor waits", owner.Name)
		}
	}
}

// BenchmarkAssign gives one more Service an address where n have one.
func BenchmarkAssign(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := ledgerOf(poolOf("blue", 0, "10.0.0.0/16"))
			for i := range n {
				_, _ = l.assign(request(fmt.Sprint("s", i), i))
			}
			for b.Loop() {
				_, _ = l.assign(request("last", n))
				l.release(ownerOf("last"))
			}
		})
	}
}
