package probe

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

func TestLocal(t *testing.T) {
	n := netlab.NodeT(t, "pl", 77, 2)
	if err := n.NFT(`table inet cni {
	chain forward { type filter hook forward priority 0;
		tcp dport 4001 drop
		tcp dport 4002 reject
	}
}`); err != nil {
		t.Fatal(err)
	}
	server, err := traffic.Serve(n.Pods[1], 4003)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	web, db := n.Pods[0], n.Pods[1]
	for _, c := range []struct {
		name     string
		from, to netip.Addr
		port     uint16
		passed   bool
		served   bool
		error    string
	}{
		{"on a port of its own", web.IPv4, db.IPv4, 0, true, false, ""},
		{"over IPv6", web.IPv6, db.IPv6, 0, true, false, ""},
		{"dropped", web.IPv4, db.IPv4, 4001, false, false, "no answer"},
		{"rejected", web.IPv4, db.IPv4, 4002, false, false, "refused"},
		{"to what the pod serves", web.IPv4, db.IPv4, 4003, true, true, ""},
		{"the other way", db.IPv4, web.IPv4, 4004, true, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Local(t.Context(), LocalOptions{From: c.from, To: c.to, Port: c.port, Timeout: 2 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if got.Passed != c.passed || got.Served != c.served || got.Error != c.error || got.Port == 0 {
				t.Errorf("%+v", got)
			}
		})
	}
	if _, err := Local(t.Context(), LocalOptions{From: web.IPv4, To: netip.MustParseAddr("10.77.9.9"), Timeout: time.Second}); err == nil || !strings.Contains(err.Error(), "10.77.9.9") {
		t.Errorf("a pod that is not here: %v", err)
	}
}
