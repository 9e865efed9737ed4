package node

import (
	"testing"

	"fairlead.dev/fairlead/test/netlab"
)

// TestMain moves the tests into a network namespace of their own, where nobody else
// takes a port.
func TestMain(m *testing.M) { netlab.Main(m) }
