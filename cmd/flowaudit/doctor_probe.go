package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/probe"
)

// probing is what doctor does with traffic of its own.
type probing struct {
	on       bool
	access   kube.Access
	nodes    []string
	image    string
	wait     time.Duration
	from, to string
	port     uint16
	expect   string
}

func (p *probing) register(fs *pflag.FlagSet) {
	fs.BoolVar(&p.on, "probe", false, "send traffic of its own: in a namespace that it makes and removes, or with --from and --to between two pods of this node")
	fs.StringSliceVar(&p.nodes, "probe-nodes", nil, fmt.Sprintf("the `nodes` to probe (default: those that take pods, %d at most)", probe.MaxNodes))
	fs.StringVar(&p.image, "probe-image", probe.DefaultImage, "`image` of the probe's pods: agnhost, or a mirror of it")
	fs.DurationVar(&p.wait, "probe-timeout", time.Minute, "how long each step of a probe may take, as the refusal after a policy was made")
	p.access.Flags(fs)
	fs.StringVar(&p.from, "from", "", "`address` of a pod of this node, to dial from")
	fs.StringVar(&p.to, "to", "", "`address` of a pod of this node, to dial")
	fs.Uint16Var(&p.port, "port", 0, "`port` to dial (default: a free one, where the probe listens itself)")
	fs.StringVar(&p.expect, "expect", "", "what should become of it: `allowed or denied`; else is a problem")
}

// local reports whether the probe is between two pods of this node.
func (p *probing) local() bool { return p.from != "" || p.to != "" }

// validate names what cannot work. None of it matters without --probe.
func (p *probing) validate(fs *pflag.FlagSet) error {
	if !p.on {
		for _, name := range []string{"probe-nodes", "probe-image", "probe-timeout", "kubeconfig", "context", "in-cluster", "from", "to", "port", "expect"} {
			if fs.Changed(name) {
				return fmt.Errorf("--%s is for --probe", name)
			}
		}
		return nil
	}
	if p.expect != "" {
		if err := oneOf("expect", p.expect, "allowed", "denied"); err != nil {
			return err
		}
	}
	switch {
	case (p.from == "") != (p.to == ""):
		return errors.New("--from and --to go together: give two pods of this node")
	case !p.local() && (p.expect != "" || p.port != 0):
		return errors.New("--expect and --port are for a probe between two pods: give --from and --to")
	case p.local() && (len(p.nodes) > 0 || p.access.Wanted()):
		return errors.New("--from and --to are for a probe on this node, --probe-nodes and --kubeconfig for one of the cluster")
	case p.access.Kubeconfig != "" && p.access.InCluster:
		return errors.New("--kubeconfig and --in-cluster exclude each other: give one")
	case p.wait < 10*time.Second || p.wait > 10*time.Minute:
		return fmt.Errorf("--probe-timeout %s: want 10s to 10m", p.wait)
	}
	return nil
}

// probed is what a probe found.
type probed struct {
	Pairs   []probe.Result     `json:"pairs,omitempty"`
	Between *probe.LocalResult `json:"between,omitempty"`
	Expect  string             `json:"expect,omitempty"` // of between
}

// problems counts what is wrong.
func (p *probed) problems() (n int) {
	if p == nil {
		return 0
	}
	for i := range p.Pairs {
		if p.Pairs[i].Problem() {
			n++
		}
	}
	if p.Between != nil && p.Expect != "" && p.Between.Passed != (p.Expect == "allowed") {
		n++
	}
	return n
}

// run sends the traffic.
func (p *probing) run(ctx context.Context, env *environment) (*probed, error) {
	say := func(format string, args ...any) { fmt.Fprintf(env.stderr, "probe: "+format+"\n", args...) }
	if p.local() {
		return p.between(ctx, say)
	}
	if !p.access.Usual(env.getenv) {
		return nil, usageError{errors.New("--probe asks the API server: give --kubeconfig, or --from and --to for two pods of this node")}
	}
	agent := "flowaudit/" + version
	core, err := p.access.REST(agent, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	networking, err := p.access.REST(agent, networkingv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	results, err := probe.Run(ctx, probe.Options{Core: core, Networking: networking, Nodes: p.nodes, Image: p.image, Timeout: p.wait, Say: say})
	return &probed{Pairs: results}, err
}

// localTimeout is how long a connection between two pods of a node may take:
// a SYN and its first two retries.
const localTimeout = 4 * time.Second

func (p *probing) between(ctx context.Context, say func(string, ...any)) (*probed, error) {
	from, err := netip.ParseAddr(p.from)
	if err != nil {
		return nil, usageError{fmt.Errorf("--from %q: want a pod's address", p.from)}
	}
	to, err := netip.ParseAddr(p.to)
	if err != nil {
		return nil, usageError{fmt.Errorf("--to %q: want a pod's address", p.to)}
	}
	say("dials %s from %s, in their network namespaces", to, from)
	r, err := probe.Local(ctx, probe.LocalOptions{From: from.Unmap(), To: to.Unmap(), Port: p.port, Timeout: localTimeout})
	if err != nil {
		return nil, err
	}
	return &probed{Between: &r, Expect: p.expect}, nil
}

// write shows what was found.
func (p *probed) write(w io.Writer) error {
	if p == nil {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(p.Pairs) > 0 {
		fmt.Fprintln(t, "PROBE FROM\tTO\tDENIED BY\tON\tSTATE\tREFUSED AFTER")
	}
	for i := range p.Pairs {
		r := &p.Pairs[i]
		after := "-"
		if r.AfterMillis > 0 {
			after = (time.Duration(r.AfterMillis) * time.Millisecond).Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Client, r.Server, orDash(r.Side), orDash(r.Node), r.State, after)
	}
	if r := p.Between; r != nil {
		fmt.Fprintln(t, "PROBE FROM\tTO\tPORT\tRESULT\tEXPECTED")
		result := "passed"
		if !r.Passed {
			result = "did not pass: " + r.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", r.From, r.To, r.Port, result, orDash(p.Expect))
	}
	return t.Flush()
}
