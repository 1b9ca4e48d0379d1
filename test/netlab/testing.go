package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
)

// NeedRoot skips a test that cannot make namespaces. In CI that is a failure:
// a test that never runs proves nothing.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root for network namespaces")
	}
	t.Skip("needs root for network namespaces")
}

// NodeT makes a node with pods 10.<subnet>.0.1, 10.<subnet>.0.2, … and
// fd00:<subnet>::1, … that is removed after the test.
func NodeT(t testing.TB, label string, subnet uint8, pods int) *Node {
	t.Helper()
	NeedRoot(t)
	n, err := NewNode(label)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := 1; i <= pods; i++ {
		v4 := netip.AddrFrom4([4]byte{10, subnet, 0, byte(i)})
		v6 := netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", subnet, i))
		if _, err := n.AddPod(fmt.Sprintf("%s-p%d", label, i), v4, v6); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
