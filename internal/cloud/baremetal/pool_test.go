package baremetal

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/fairlead/api/v1alpha1"
)

func TestPoolKeepsWhatCanBeUsed(t *testing.T) {
	slipped := poolOf("slipped", 0, "192.0.2.0/30", "192.0.2.9-192.0.2.8")
	want := Report{
		Capacity: v1alpha1.FamilyCounts{IPv4: 4}, Available: v1alpha1.FamilyCounts{IPv4: 4},
		Faults: []string{`spec.addresses[1]: "192.0.2.9-192.0.2.8" is a reversed range; did you mean 192.0.2.8-192.0.2.9?`},
	}
	if diff := cmp.Diff(want, decodePool(&slipped).report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}
