// Package product runs flowaudit on a cluster as it is shipped: an agent on each node, one collector, and questions to it.
package product

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/process"
)

// Options say how it runs.
type Options struct {
	Bin       string // the directory of the programs, see Build
	Collector string // kubeconfig of the collector; "" is one with the rights of deploy/rbac
	NoAgents  bool
	Arguments []string // of the collector, beside those that it needs
	Ask       []string // arguments of flowaudit, unless a question has them
}

// Product is a collector with the agents of all nodes.
type Product struct {
	Server string // what flowaudit's --server takes

	bin       string
	askArgs   []string
	dir       string
	collector *process.Process
	agents    []*process.Process
	agentArgs []string
}

const (
	readyLimit = 20 * time.Second
	stopLimit  = 20 * time.Second
)

// Build makes flowaudit's programs from this checkout and gives their directory.
func Build(ctx context.Context) (string, error) {
	root, err := root(ctx)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "cluster")
	for program, cgo := range map[string]string{"flowaudit-agent": "0", "flowaudit-collector": "1", "flowaudit": "0"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, program), "./cmd/"+program)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", program, err, out)
		}
	}
	return bin, nil
}

// root is the directory of flowaudit's module.
func root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/flowaudit/flowaudit").Output()
	if err != nil {
		return "", fmt.Errorf("find flowaudit's module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Start runs the collector beside the API server and an agent in each node's
// network namespace, and waits until every agent has reported.
func Start(ctx context.Context, c *cluster.Cluster, o Options) (*Product, error) {
	dir, err := os.MkdirTemp(c.Dir, "flowaudit-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	p := &Product{Server: "unix:" + filepath.Join(dir, "collector.sock"), bin: o.Bin, askArgs: o.Ask, dir: dir}
	if err := p.start(ctx, c, o); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Product) start(ctx context.Context, c *cluster.Cluster, o Options) error {
	root, err := root(ctx)
	if err != nil {
		return err
	}
	agent, collector, err := grant(ctx, c, root)
	if err != nil {
		return err
	}
	if o.Collector != "" {
		collector = o.Collector
	}
	cmd := c.Plane().Command(context.Background(), filepath.Join(p.bin, "flowaudit-collector"),
		append([]string{"--listen", p.Server, "--data", filepath.Join(p.dir, "data"), "--kubeconfig", collector}, o.Arguments...)...)
	if p.collector, err = process.Start("collector", p.dir, cmd); err != nil {
		return err
	}
	p.agentArgs = []string{"--collector", p.Server, "--kubeconfig", agent, "--nflog-group", "100=denied", "--window", "2s", "--dump-interval", "1s"}
	if o.NoAgents {
		return p.Until(ctx, readyLimit, "the collector", func() error {
			_, err := p.Ask(ctx, "query", "nodes")
			return err
		})
	}
	return p.Watch(ctx, c.Nodes)
}

// Watch starts agents on nodes, and waits until they have reported.
func (p *Product) Watch(ctx context.Context, nodes []*cluster.Node) error {
	for _, n := range nodes {
		agent, err := p.startAgent(n)
		if err != nil {
			return err
		}
		p.agents = append(p.agents, agent)
	}
	return p.Until(ctx, readyLimit, "all agents to report", func() error {
		out, err := p.Ask(ctx, "query", "nodes")
		for _, n := range nodes {
			if err == nil && !strings.Contains(out, n.Name) {
				err = fmt.Errorf("%s has not reported", n.Name)
			}
		}
		return err
	})
}

func (p *Product) startAgent(n *cluster.Node) (*process.Process, error) {
	cmd := n.Command(context.Background(), filepath.Join(p.bin, "flowaudit-agent"), append([]string{"--node-name", n.Name}, p.agentArgs...)...)
	return process.Start("agent-"+n.Name, p.dir, cmd)
}

// Restart ends a node's agent, as a crash does if it is killed, and starts another.
func (p *Product) Restart(n *cluster.Node, kill bool) error {
	i := slices.IndexFunc(p.agents, func(a *process.Process) bool { return a.Name == "agent-"+n.Name })
	if i < 0 {
		return fmt.Errorf("%s has no agent", n.Name)
	}
	end := func() error { return p.agents[i].Stop(stopLimit) }
	if kill {
		end = p.agents[i].Kill
	}
	if err := end(); err != nil {
		return err
	}
	agent, err := p.startAgent(n)
	if err == nil {
		p.agents[i] = agent
	}
	return err
}

// Diagnosis is what flowaudit doctor says of the cluster, as JSON. That it finds
// problems is no error.
func (p *Product) Diagnosis(ctx context.Context, since time.Time) ([]byte, error) {
	out, err := p.Command(ctx, "doctor", "--only", "cluster", "-o", "json", "--since", since.Format(time.RFC3339Nano)).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return nil, fmt.Errorf("flowaudit doctor: %w", err)
	}
	return out, nil
}

// Ask runs flowaudit against the collector and gives what it prints.
func (p *Product) Ask(ctx context.Context, args ...string) (string, error) {
	cmd := p.Command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("flowaudit %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// Command prepares flowaudit to ask the collector.
func (p *Product) Command(ctx context.Context, args ...string) *exec.Cmd {
	// What is given twice counts as it stands last.
	return exec.CommandContext(ctx, filepath.Join(p.bin, "flowaudit"), slices.Concat(args[:1], p.askArgs, args[1:], []string{"--server", p.Server})...)
}

// Problems are what flowaudit status says is wrong.
func (p *Product) Problems(ctx context.Context) ([]string, error) {
	out, err := p.Command(ctx, "status", "-o", "json").Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1 says that there are some
		return nil, fmt.Errorf("flowaudit status: %w", err)
	}
	var status struct{ Problems []string }
	if err := json.Unmarshal(out, &status); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return status.Problems, nil
}

// Flows are what flowaudit observe answers, with further flags.
func (p *Product) Flows(ctx context.Context, args ...string) ([]flow.Flow, error) {
	var flows []flow.Flow
	err := p.Each(ctx, func(f *flow.Flow) { flows = append(flows, *f) }, args...)
	return flows, err
}

// Each gives the flows one by one, for more than fit in memory.
func (p *Product) Each(ctx context.Context, take func(*flow.Flow), args ...string) error {
	cmd := p.Command(ctx, append([]string{"observe", "--all", "-o", "json", "--timeout", "10m"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("flowaudit observe: %w", err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for err == nil && lines.Scan() {
		var f flow.Flow
		if err = json.Unmarshal(lines.Bytes(), &f); err == nil {
			take(&f)
		}
	}
	// Wait last: it closes what is read.
	if _, drained := io.Copy(io.Discard, out); drained != nil {
		err = errors.Join(err, drained)
	}
	if ended := cmd.Wait(); ended != nil {
		ended = fmt.Errorf("flowaudit observe: %w: %s", ended, stderr.String())
		return errors.Join(err, ended)
	}
	return errors.Join(err, lines.Err())
}

// Until tries something until it works.
func (p *Product) Until(ctx context.Context, limit time.Duration, what string, try func() error) error {
	deadline := time.After(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-deadline:
			return fmt.Errorf("wait for %s: %w\n%s", what, err, p.Logs())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Logs are the ends of what the programs said.
func (p *Product) Logs() string {
	var b strings.Builder
	for _, d := range append(p.agents, p.collector) {
		fmt.Fprintf(&b, "%s said:\n%s\n", d.Name, d.Tail())
	}
	return b.String()
}

// Close stops the agents, which hand over their last flows, and then the collector.
func (p *Product) Close() error {
	var errs []error
	for _, a := range p.agents {
		errs = append(errs, a.Stop(stopLimit))
	}
	if p.collector != nil {
		errs = append(errs, p.collector.Stop(stopLimit))
	}
	return errors.Join(errs...)
}
