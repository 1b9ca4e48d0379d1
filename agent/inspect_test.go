package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// put writes a file of a host.
func (h host) put(t *testing.T, path, text string) {
	t.Helper()
	path = filepath.Join(h.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRecognize(t *testing.T) {
	chains := func(names ...string) host { return host{root: t.TempDir(), chains: names} }
	for name, c := range map[string]struct {
		host host
		want string
	}{
		"nothing":                        {node(t), ""},
		"Flannel alone":                  {node(t, "/run/flannel/subnet.env"), "Flannel none"},
		"Flannel, and somebody enforces": {host{root: node(t, "/run/flannel/subnet.env").root, chains: []string{"kube-network-policies"}}, "kube-network-policies netfilter, Flannel none"},
		"Calico on iptables":             {chains("filter", "cali-FORWARD"), "Calico netfilter"},
		"Calico's eBPF":                  {node(t, "/sys/fs/bpf/tc/globals/cali_v4_ct3"), "Calico (eBPF) elsewhere"},
		"Cilium without Hubble":          {node(t, "/sys/fs/bpf/tc/globals/cilium_policy_1"), "Cilium elsewhere"},
		"kube-router":                    {chains("KUBE-ROUTER-FORWARD"), "kube-router netfilter"},
		"Weave":                          {chains("WEAVE-NPC-DEFAULT"), "Weave Net netfilter"},
		"Antrea":                         {node(t, "/var/run/antrea/cni.sock"), "Antrea elsewhere"},
	} {
		var got []string
		for _, p := range recognize(c.host) {
			got = append(got, p.Name+" "+p.Enforcement.String())
			if p.Why == "" || strings.Contains(p.Why, c.host.root) {
				t.Errorf("%s: why %q", name, p.Why)
			}
		}
		if said := strings.Join(got, ", "); said != c.want {
			t.Errorf("%s: recognized %q, want %q", name, said, c.want)
		}
	}
}

func TestCNIConfigurations(t *testing.T) {
	for text, want := range map[string]string{
		`{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}`: "cbr0 flannel portmap",
		`{"name":"bridge","type":"bridge"}`:                                 "bridge bridge",
		`{"plugins":[]}`:                                                    "",
		`no JSON`:                                                           "",
	} {
		c := readConfiguration([]byte(text))
		if got := strings.TrimSpace(c.Name + " " + strings.Join(c.Types, " ")); got != want {
			t.Errorf("%s: read %q, want %q", text, got, want)
		}
	}
	h := node(t)
	h.put(t, "/etc/cni/net.d/20-b.conf", `{"type":"b"}`)
	h.put(t, "/etc/cni/net.d/10-a.conflist", `{"plugins":[{"type":"a"}]}`)
	h.put(t, "/etc/cni/net.d/00-old.conf.bak", `{"type":"old"}`)
	var files []string
	for _, c := range configurations(h.root) {
		files = append(files, c.File)
	}
	if want := []string{"10-a.conflist", "20-b.conf"}; !slices.Equal(files, want) {
		t.Errorf("files %v, want %v", files, want)
	}
}

func FuzzCNIConfiguration(f *testing.F) {
	f.Add([]byte(`{"name":"cbr0","plugins":[{"type":"flannel"}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) { readConfiguration(b) })
}

func TestInspectReadsSettings(t *testing.T) {
	h := node(t)
	h.put(t, "/proc/sys/net/netfilter/nf_conntrack_acct", "1\n")
	h.put(t, "/proc/sys/net/bridge/bridge-nf-call-iptables", "0\n")
	h.put(t, "/proc/thread-self/net/ip_vs", "\n\n\nTCP  0A600001:01BB rr\n")
	h.put(t, "/sys/class/net/cni0/bridge/x", "")
	h.put(t, "/sys/class/net/eth0/address", "")
	n := inspect(h)
	if len(n.Sysctls) != 2 || n.Sysctls["net.netfilter.nf_conntrack_acct"] != "1" || n.Sysctls["net.bridge.bridge-nf-call-iptables"] != "0" {
		t.Errorf("settings %v", n.Sysctls)
	}
	if n.Services != 1 {
		t.Errorf("%d services, want 1", n.Services)
	}
	if !slices.Equal(n.Bridges, []string{"cni0"}) {
		t.Errorf("bridges %v", n.Bridges)
	}
	if len(n.Notes) != 1 || !strings.Contains(n.Notes[0], "auto found no network plugin") {
		t.Errorf("notes %v", n.Notes)
	}
}
