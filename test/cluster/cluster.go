package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/flowaudit/flowaudit/test/cluster/machine"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// Back ends of kube-proxy.
const (
	ProxyIPTables = "iptables"
	ProxyNFTables = "nftables"
)

// Options say what cluster is wanted.
type Options struct {
	Nodes     int       // how many, 1 to 9
	ProxyMode string    // ProxyIPTables or ProxyNFTables
	Progress  io.Writer // is told what takes long
}

// DefaultOptions are two nodes with kube-proxy's iptables rules.
func DefaultOptions() Options {
	return Options{Nodes: 2, ProxyMode: ProxyIPTables, Progress: io.Discard}
}

// Validate says what is wrong with the options.
func (o Options) Validate() error {
	if o.Nodes < 1 || o.Nodes > 9 {
		return fmt.Errorf("%d nodes: want 1 to 9", o.Nodes)
	}
	if o.ProxyMode != ProxyIPTables && o.ProxyMode != ProxyNFTables {
		return fmt.Errorf("kube-proxy mode %q: want %s or %s", o.ProxyMode, ProxyIPTables, ProxyNFTables)
	}
	if o.Progress == nil {
		return errors.New("no writer for progress: io.Discard is one")
	}
	return nil
}

// Cluster is a running cluster.
type Cluster struct {
	Nodes    []*Node              // whose pods are network namespaces
	Machines []*Node              // with real kubelets, see AddMachines
	Client   kubernetes.Interface // as admin, from this process
	Dir      string               // of logs and kubeconfigs, removed with the cluster

	options  Options
	plane    *plane
	dispatch *dispatcher
	cancel   context.CancelFunc
	wait     func() error
}

// Start makes a cluster; the caller closes it. It ends with this program, also
// when that is killed, but its namespaces and files then stay until the next Start.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs root for network namespaces")
	}
	etcd, binaries, err := Prepare(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	dir, err := makeDir()
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: o, Dir: dir, cancel: func() {}, wait: func() error { return nil }}
	if err := c.start(ctx, etcd, binaries); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Prepare gets what a cluster consists of, which takes minutes the first time.
func Prepare(ctx context.Context, progress io.Writer) (etcd, binaries string, err error) {
	if err := install(ctx, progress); err != nil {
		return "", "", err
	}
	if etcd, err = unpacked(ctx, progress, "etcd-server", "usr/bin/etcd"); err != nil {
		return "", "", err
	}
	binaries, err = Binaries(ctx, progress)
	return etcd, binaries, err
}

func (c *Cluster) start(ctx context.Context, etcd, binaries string) error {
	began := time.Now()
	step := func(what string) {
		fmt.Fprintf(c.options.Progress, "%5.1f s  %s\n", time.Since(began).Seconds(), what)
	}
	var err error
	if c.plane, err = newPlane(c.Dir, binaries, etcd); err != nil {
		return err
	}
	c.Client = c.plane.client
	var group errgroup.Group
	group.Go(func() error { return c.plane.start(ctx) })
	group.Go(c.makeNodes) // they need no API server
	if err := group.Wait(); err != nil {
		return err
	}
	step("the API server is ready")
	if err := c.plane.startControllers(); err != nil {
		return err
	}
	if c.plane.names, err = serveNames(c.plane); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := errors.Join(n.register(ctx, c.plane), n.startProxy(c.plane, c.options.ProxyMode)); err != nil {
			return err
		}
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	c.dispatch = newDispatcher(c.plane, c.Nodes, c.options.Progress)
	if c.wait, err = c.dispatch.start(running); err != nil {
		return err
	}
	if err := c.NamespaceReady(ctx, "default"); err != nil {
		return err
	}
	step("the nodes are ready")
	return nil
}

func (c *Cluster) makeNodes() error {
	for number := 1; number <= c.options.Nodes; number++ {
		n, err := newNode(c.plane, number)
		if n != nil {
			c.Nodes = append(c.Nodes, n)
		}
		if err != nil {
			return err
		}
	}
	return route(c.plane, c.Nodes)
}

// Close stops and removes everything.
func (c *Cluster) Close() error {
	c.cancel()
	errs := []error{c.wait()}
	for _, n := range c.all() {
		errs = append(errs, n.Close())
	}
	if c.plane != nil {
		errs = append(errs, c.plane.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.Dir))...)
}

// Plane is the control plane's network namespace, from which the API server
// can be reached.
func (c *Cluster) Plane() *netlab.Namespace { return c.plane.ns }

// Admin is the kubeconfig of a user who may do everything.
func (c *Cluster) Admin() string { return c.plane.admin }

// AuditLog is a file with the requests of service accounts, one a line, to the
// API server before it was stopped for the first time.
func (c *Cluster) AuditLog() string { return c.plane.auditLog(1) }

// StopAPI ends the API server at once, as a crash does. What is in etcd stays.
func (c *Cluster) StopAPI() error { return c.plane.processes["kube-apiserver"].Kill() }

// StartAPI starts the API server again.
func (c *Cluster) StartAPI(ctx context.Context) error { return c.plane.startAPI(ctx) }

// Kubectl runs kubectl as admin, with what it reads from standard input.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// KubectlCommand prepares kubectl as admin.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	return c.plane.ns.Command(ctx, c.plane.binary("kubectl"), append([]string{"--kubeconfig", c.plane.admin}, args...)...)
}

// Apply creates or changes the objects of YAML documents.
func (c *Cluster) Apply(ctx context.Context, yaml string) error {
	_, err := c.Kubectl(ctx, yaml, "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}

// Sweep removes what clusters of programs that are gone left: directories and
// network namespaces. Their processes ended with them.
func Sweep() error {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list old directories: %w", err)
	}
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove an old directory: %w", err)
			}
		}
	}
	return errors.Join(netlab.Sweep(), machine.Sweep())
}

// dirPrefix begins the name of a cluster's directory; the pid follows.
const dirPrefix = "flowaudit-cluster-"

func makeDir() (string, error) {
	if err := Sweep(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	return dir, nil
}
