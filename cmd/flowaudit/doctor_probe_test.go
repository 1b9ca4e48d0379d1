package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/probe"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// shown is what doctor shows of a probe.
func shown(t *testing.T, p *probed, output string) string {
	t.Helper()
	var stdout, stderr strings.Builder
	o := &doctor{client: &client{env: environment{stdout: &stdout, stderr: &stderr, now: func() time.Time { return here }}}, output: output}
	var code exitCode
	if err := o.show(&diagnosis{Probe: p}); err != nil && !errors.As(err, &code) {
		t.Fatal(err)
	}
	return transcript(result{stdout.String(), stderr.String(), int(code)}, "doctor", "--only", "probe", "--probe", "-o", output)
}

func TestDoctorShowsAProbe(t *testing.T) {
	well := &probed{Pairs: []probe.Result{
		{Client: "node-1", Server: "node-1", Side: probe.Ingress, Node: "node-1", State: probe.Enforced, AfterMillis: 1430},
		{Client: "node-1", Server: "node-1", Side: probe.Egress, Node: "node-1", State: probe.Enforced, AfterMillis: 12_050},
	}}
	ill := &probed{Pairs: append([]probe.Result{
		{Client: "node-1", Server: "node-2", State: probe.Unreachable},
		{Client: "node-2", Server: "node-1", Side: probe.Egress, Node: "node-2", State: probe.Unenforced},
	}, well.Pairs...)}
	between := &probe.LocalResult{From: netip.MustParseAddr("10.1.0.7"), To: netip.MustParseAddr("10.1.0.9"), Port: 3306, Error: "no answer"}
	golden(t, "doctor-probe-well", shown(t, well, "text"))
	golden(t, "doctor-probe-ill", shown(t, ill, "text"))
	golden(t, "doctor-probe-json", shown(t, ill, "json"))
	golden(t, "doctor-probe-between", shown(t, &probed{Between: between, Expect: "denied"}, "text"))
	golden(t, "doctor-probe-between-ill", shown(t, &probed{Between: between, Expect: "allowed"}, "text"))
}

func TestDoctorProbesWhatIsAsked(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--only", "probe"}, exitUsage, "say --probe as well"},
		{[]string{"--from", "10.1.0.7"}, exitUsage, "--from is for --probe"},
		{[]string{"--kubeconfig", "x"}, exitUsage, "--kubeconfig is for --probe"},
		{[]string{"--probe", "--from", "10.1.0.7"}, exitUsage, "go together"},
		{[]string{"--probe", "--expect", "denied"}, exitUsage, "give --from and --to"},
		{[]string{"--probe", "--from", "10.1.0.7", "--to", "10.1.0.9", "--expect", "no"}, exitUsage, "--expect"},
		{[]string{"--probe", "--from", "10.1.0.7", "--to", "10.1.0.9", "--probe-nodes", "a"}, exitUsage, "--probe-nodes"},
		{[]string{"--probe", "--probe-timeout", "1s"}, exitUsage, "want 10s to 10m"},
		{[]string{"--probe", "--kubeconfig", "x", "--in-cluster"}, exitUsage, "exclude each other"},
		{[]string{"--only", "probe", "--probe"}, exitUsage, "give --kubeconfig"},
		{[]string{"--only", "probe", "--probe", "--kubeconfig", "/nowhere"}, exitError, "read kubeconfig"},
		{[]string{"--only", "probe", "--probe", "--from", "x", "--to", "10.1.0.9"}, exitUsage, "want a pod's address"},
	} {
		r := flowaudit(t, nil, nil, append([]string{"doctor"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit code %d, %s", c.args, r.code, r.stderr)
		}
	}
}

// TestDoctorProbesBetweenPods: on the real kernel, with the exit code that scripts want.
func TestDoctorProbesBetweenPods(t *testing.T) {
	n := netlab.NodeT(t, "dp", 78, 2)
	if err := n.NFT(`table inet cni {
	chain forward { type filter hook forward priority 0; tcp dport 4001 drop
	}
}`); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		port, expect string
		code         int
		want         string
	}{
		{"4001", "denied", exitOK, "did not pass: no answer"},
		{"4001", "allowed", exitError, "1 problem"},
		{"4002", "allowed", exitOK, "passed"},
	} {
		r := flowaudit(t, nil, nil, "doctor", "--only", "probe", "--probe", "--from", "10.78.0.1", "--to", "10.78.0.2", "--port", c.port, "--expect", c.expect)
		if r.code != c.code || !strings.Contains(r.stdout, c.want) || !strings.Contains(r.stderr, "probe: dials 10.78.0.2 from 10.78.0.1") {
			t.Errorf("port %s, expect %s: exit code %d\n%s%s", c.port, c.expect, r.code, r.stdout, r.stderr)
		}
	}
}
