package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/proto/dial"
)

func TestParseChoice(t *testing.T) {
	for _, text := range []string{
		"auto", "conntrack", "kube-router", "k3s", "calico", "felix", "felix=/run/f.sock", "hubble", "hubble=unix:/run/h.sock", "hubble=/run/h.sock",
		"hubble=node:4244", "hubble=tls://node:4244?ca=/ca.pem&server-name=x", "kernel-log", "kernel-log=my prefix", "kernel-log=p=allowed",
		"weave", "antrea", "antrea=/logs/np.log", "ovn", "gke", "aws", "kube-network-policies=/var/log/*.log", "nflog:7", "nflog:7=calico",
	} {
		if c, err := ParseChoice(text); err != nil || c.String() != text {
			t.Errorf("ParseChoice(%q) = %s, %v", text, c, err)
		}
	}
	for text, want := range map[string]string{
		"":                          "want one of auto, ",
		"cilium":                    "want one of auto, ",
		"antrea=":                   "no address behind =",
		"antrea=np.log":             "want the path of a log",
		"auto=1":                    "it takes no address",
		"felix=sock":                "want the path of a socket",
		"hubble=node":               "want unix:PATH, host:port, or tls://",
		"hubble=tls://node:1?a=b":   `"a": want ca, cert, key or server-name`,
		"hubble=tls://node:x\x00":   "invalid",
		"kernel-log=p=dropped":      `meaning "dropped": want denied or allowed`,
		"nflog:x":                   "want a number up to 65535",
		"nflog:7=maybe":             `meaning "maybe"`,
		"nflog":                     "want a number up to 65535",
		"kube-network-policies=log": "or a pattern of one",
	} {
		if c, err := ParseChoice(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseChoice(%q) = %v, %v; want an error with %q", text, c, err, want)
		}
	}
}

func TestHubbleAddresses(t *testing.T) {
	for text, want := range map[string]dial.Options{
		"":          {Address: "unix:/var/run/cilium/hubble.sock"},
		"/run/h":    {Address: "unix:/run/h"},
		"node:4244": {Address: "node:4244"},
		"tls://node:4244?ca=/ca&cert=/c&key=/k&server-name=n": {Address: "node:4244", TLS: true, CA: "/ca", Cert: "/c", Key: "/k", ServerName: "n"},
	} {
		if got, err := hubbleAddress(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("hubbleAddress(%q) = %+v, %v", text, got, err)
		}
	}
}

// node makes a host with files.
func node(t *testing.T, files ...string) host {
	t.Helper()
	h := host{root: t.TempDir(), groups: make(map[uint16]string)}
	for _, f := range files {
		f = filepath.Join(h.root, f)
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestDetect(t *testing.T) {
	kubeRouter := func(h host) host { h.chains = []string{"filter", "INPUT", "KUBE-ROUTER-FORWARD"}; return h }
	taken := func(h host, group uint16) host { h.groups[group] = "ulogd (pid 7)"; return h }
	calico := func(h host) host { h.chains = []string{"filter", "cali-FORWARD"}; return h }
	for _, c := range []struct {
		name string
		host host
		want string // sources, and what the notes say
		note string
	}{
		{"nothing", node(t), "", "auto found no network plugin"},
		{"kube-router", kubeRouter(node(t)), "kube-router tap", ""},
		{"kube-router on nftables", host{root: t.TempDir(), chains: []string{"kube-router-filter-ipv4"}}, "kube-router tap", ""},
		{"kube-router, its group read by another", taken(kubeRouter(node(t)), 100), "tap", "nflog:100 is not read: ulogd (pid 7) has it"},
		{"k3s", kubeRouter(node(t, "/var/lib/rancher/k3s/agent/x")), "k3s tap", ""},
		{"Cilium", node(t, "/var/run/cilium/hubble.sock"), "hubble", ""},
		{"Calico", calico(node(t)), "tap", "see --source felix, calico and kernel-log"},
		{"Calico with flow logs", taken(calico(node(t)), 1), "tap", "calico is not read: ulogd (pid 7) has NFLOG groups 1 and 2"},
		{"Calico's eBPF", node(t, "/sys/fs/bpf/tc/globals/cali_v4_ct3"), "felix", ""},
		{"Weave", node(t, "/var/log/containers/weave-net-x_kube-system_weave-npc-0123.log"), "weave", ""},
		{"Romana", host{root: t.TempDir(), chains: []string{"ROMANA-FORWARD-IN"}}, "tap", ""},
		{"Antrea", node(t, "/var/log/antrea/networkpolicy/np.log"), "antrea", ""},
		{"OVN-Kubernetes", node(t, "/var/log/ovn/acl-audit-log.log"), "ovn", ""},
		{"GKE", node(t, "/var/log/network/policy_action.log", "/var/run/cilium/hubble.sock"), "hubble gke", ""},
		{"AWS", node(t, "/var/log/aws-routed-eni/network-policy-agent.log"), "aws", ""},
		{"kube-network-policies", node(t, "/var/log/containers/knp-x_kube-system_kube-network-policies-0123.log"), "kube-network-policies", ""},
	} {
		found, notes := detect(c.host)
		var names []string
		for _, f := range found {
			names = append(names, f.Name)
			if f.why == "" || strings.Contains(f.why, c.host.root) {
				t.Errorf("%s: why %q", c.name, f.why)
			}
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: sources %q, want %q", c.name, got, c.want)
		}
		if said := strings.Join(notes, "\n"); !strings.Contains(said, c.note) || c.note == "" && said != "" {
			t.Errorf("%s: notes %q, want %q", c.name, said, c.note)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		sources string
		groups  []nflog.Group // given by --nflog-group
		host    host
		nflog   string
		plugins string
		trust   bool // a confirmed connection is an allowed one
	}{
		{"kube-router", nil, host{}, "[100=kube-router]", "", true},
		{"k3s nflog:7=allowed", nil, host{}, "[100=kube-router 7=allowed]", "", true},
		{"kube-router", []nflog.Group{{Number: 100}}, host{}, "[100=denied]", "", true},
		{"calico weave", nil, host{}, "[1=calico 2=calico]", "weave", true},
		{"hubble kube-router", nil, host{}, "[100=kube-router]", "hubble", false},
		{"auto kube-router", nil, host{root: t.TempDir(), chains: []string{"KUBE-POD-FW-X"}}, "[100=kube-router]", "", true},
		{"auto antrea", nil, node(t, "/var/log/antrea/networkpolicy/np.log"), "[]", "antrea", false},
		{"antrea nflog:5", nil, host{}, "[5=denied]", "antrea", false},
		{"felix nflog:5", nil, host{}, "[5=denied]", "felix", true},
		{"auto nflog:5", nil, node(t, "/sys/fs/bpf/calico/x"), "[5=denied]", "felix", false},
	} {
		var said bytes.Buffer
		a := &agent{Options: Options{NFLOG: c.groups, ConfirmedAllowed: ConfirmedAuto, Log: slog.New(slog.NewTextHandler(&said, nil))}}
		for _, s := range strings.Fields(c.sources) {
			choice, err := ParseChoice(s)
			if err != nil {
				t.Fatal(err)
			}
			a.Sources = append(a.Sources, choice)
		}
		a.plugins = a.choose(func() host { return c.host })
		var plugins []string
		for _, p := range a.plugins {
			plugins = append(plugins, p.String())
		}
		if got := fmt.Sprint(a.NFLOG); got != c.nflog || strings.Join(plugins, " ") != c.plugins || a.confirmed(elsewhere(a.plugins)) != c.trust {
			t.Errorf("%s: groups %s, plugins %v, trust %t; want %s, %s, %t", c.sources, got, plugins, a.confirmed(elsewhere(a.plugins)), c.nflog, c.plugins, c.trust)
		}
		if len(a.notes) == 0 || strings.Count(said.String(), "\n") != len(a.notes) {
			t.Errorf("%s: notes %v, said %q", c.sources, a.notes, said.String())
		}
	}
}

func TestConntrackCanBeNamed(t *testing.T) {
	a := &agent{Options: Options{Sources: []Choice{{Name: "conntrack"}}, Log: slog.New(slog.DiscardHandler)}}
	if p := a.choose(nil); len(p) != 0 || !a.Conntrack {
		t.Errorf("plugins %v, conntrack %t", p, a.Conntrack)
	}
}

func TestLimitsOfThePlugins(t *testing.T) {
	for _, name := range SourceNames() {
		c, err := ParseChoice(name)
		if err != nil {
			continue // nflog:GROUP
		}
		a := &agent{Options: Options{Log: slog.New(slog.DiscardHandler)}, plugins: []chosen{{Choice: c}}}
		_, isLog := pluginLogs()[name]
		if limits := a.pluginLimits(); isLog && (len(limits) != 1 || !strings.HasPrefix(limits[0], name+": ")) {
			t.Errorf("%s: limits %v", name, limits)
		}
	}
	felix := &agent{plugins: []chosen{{Choice: Choice{Name: "felix"}}}}
	felix.Conntrack = true
	if l := felix.pluginLimits(); len(l) != 1 || !strings.Contains(l[0], "refusals only") {
		t.Errorf("felix beside conntrack: limits %v", l)
	}
	felix.plugins[0].why = whyFelixEBPF
	if l := felix.pluginLimits(); len(l) != 1 || strings.Contains(l[0], "refusals only") {
		t.Errorf("felix with eBPF: limits %v", l)
	}
	if !slices.Contains(SourceNames(), "nflog:GROUP") {
		t.Error("nflog is not listed")
	}
}
