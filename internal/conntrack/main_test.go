package conntrack

import (
	"testing"

	"fairlead.dev/fairlead/test/netlab"
)

// TestMain moves the tests into network namespaces of their own: they write real rules
// and have real flows, as root or not.
func TestMain(m *testing.M) { netlab.Main(m) }
