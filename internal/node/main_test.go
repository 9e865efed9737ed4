package node

import (
	"testing"

	"fairlead.dev/fairlead/test/netlab"
)

// TestMain gives the tests a network namespace of their own, whose settings and lock
// they may take.
func TestMain(m *testing.M) { netlab.Main(m) }
