package ipvs

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// listed is what the kernel shows of kube-proxy's services.
const listed = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A80702:192B      Masq    1      4          0
UDP  0A60000A:0035 rr
  -> 0A010105:0035      Masq    1      0          16
  -> 0A010205:0035      Masq    1      0          12
TCP  [fd96:0000:0000:0000:0000:0000:0000:0009]:0050 rr persistent 10800
  -> [fd00:0001:0000:0000:0000:0000:0000:0002]:1F90      Masq    1      0          0
FWM  00000064 rr
  -> 0A010107:0050      Tunnel  1      0          0
`

// node makes a file system with what IPVS shows.
func node(t *testing.T, conntrack, services string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{"proc/sys/net/ipv4/vs/conntrack": conntrack, "proc/thread-self/net/ip_vs": services} {
		if text == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestServices(t *testing.T) {
	s, err := Read(node(t, "0\n", listed))
	if err != nil || s.Len() != 4 {
		t.Fatalf("%d services, %v", s.Len(), err)
	}
	for _, c := range []struct {
		name     string
		protocol flow.Protocol
		src, dst string
		mark     uint32
		want     bool
	}{
		{"to a service", flow.TCP, "10.1.0.1:40000", "10.96.0.1:443", 0, true},
		{"to another port of it", flow.TCP, "10.1.0.1:40000", "10.96.0.1:80", 0, false},
		{"by another protocol", flow.UDP, "10.1.0.1:40000", "10.96.0.1:443", 0, false},
		{"a server's reply", flow.UDP, "10.1.1.5:53", "10.1.0.1:40000", 0, true},
		{"to a server itself", flow.UDP, "10.1.0.1:40000", "10.1.1.5:53", 0, false},
		{"over IPv6", flow.TCP, "[fd00:1::1]:40000", "[fd96::9]:80", 0, true},
		{"an IPv6 server's reply", flow.TCP, "[fd00:1::2]:8080", "[fd00:1::1]:40000", 0, true},
		{"by its mark", flow.TCP, "10.1.0.1:40000", "203.0.113.5:80", 0x64, true},
		{"with another mark", flow.TCP, "10.1.0.1:40000", "203.0.113.5:80", 0x65, false},
		{"a reply of a server chosen by mark", flow.SCTP, "10.1.1.7:80", "203.0.113.5:4000", 0, true},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		tuple := flow.Tuple{Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port()}
		got := s.To(c.protocol, tuple, c.mark)
		if strings.Contains(c.name, "reply") {
			got = s.From(c.protocol, tuple)
		}
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestANodeWithoutIPVS(t *testing.T) {
	root := node(t, "", "")
	s, err := Read(root)
	if err != nil || s.Len() != 0 || s.To(flow.TCP, flow.Tuple{}, 0) || s.From(flow.TCP, flow.Tuple{}) {
		t.Errorf("%+v, %v", s, err)
	}
	if tracked, err := Tracked(root); err != nil || !tracked {
		t.Errorf("tracked: %v, %v", tracked, err)
	}
	for text, want := range map[string]bool{"0\n": false, "1\n": true} {
		if tracked, err := Tracked(node(t, text, "")); err != nil || tracked != want {
			t.Errorf("%q: tracked: %v, %v", text, tracked, err)
		}
	}
}

func TestBadLines(t *testing.T) {
	head := strings.Join(strings.SplitAfter(listed, "\n")[:3], "")
	for _, line := range []string{"TCP", "ABC 0A600001:01BB rr", "TCP 0A600001 rr", "TCP 1A6000010:01BB", "TCP 0A600001:1BBBB", "TCP [fd00]:0050", "-> x:1", "FWM xyz"} {
		if _, err := parse([]byte(head + line + "\n")); err == nil || !strings.Contains(err.Error(), "line 4") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(listed))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parse(b); err == nil && s == nil {
			t.Error("neither services nor an error")
		}
	})
}
