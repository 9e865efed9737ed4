package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairlead.dev/fairlead/test/netlab"
)

// TestLocalAddrs: virtual addresses on the link of a kube-proxy in ipvs mode are none of
// the node's, and what has just come is.
func TestLocalAddrs(t *testing.T) {
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := lab.AddClient("host")
	if err != nil {
		t.Fatal(err)
	}
	// The link is a bridge here, since not every kernel has dummies.
	script := `
ip link add kube-ipvs0 type bridge
ip addr add 10.96.0.9/32 dev kube-ipvs0
ip link add extra type bridge
ip addr add 192.0.2.7/32 dev extra`
	if out, err := host.Output(t.Context(), "sh", "-ec", script); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got []netip.Addr
	if err := host.Do(func() (err error) { got, err = localAddrs(); return err }); err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{host.IPv4, host.IPv6, netip.MustParseAddr("192.0.2.7")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.SortSlices(netip.Addr.Less)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
