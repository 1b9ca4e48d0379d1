package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/test/cluster/machine"
	"github.com/flowaudit/flowaudit/test/cluster/process"
)

// BoxImage is an image on every machine: echo servers and clients.
const BoxImage = "localhost/flowaudit/box:1"

// AgnhostImage is an image on every machine: what of Kubernetes' agnhost a
// probe needs.
const AgnhostImage = "localhost/flowaudit/agnhost:1"

// pauseImage holds the network namespace of a pod.
const pauseImage = "localhost/flowaudit/pause:1"

// realMachine is a node with kubelet and containerd.
type realMachine struct {
	dir                 string
	kit                 *kit
	kubelet, kubeconfig string
	cgroups             []machine.Cgroup
	process             *process.Process
}

// AddMachines adds nodes with a real kubelet, containerd and runc, which run
// pods' containers from the images of these OCI archives and BoxImage. They are
// removed with the cluster.
func (c *Cluster) AddMachines(ctx context.Context, n int, archives ...string) ([]*Node, error) {
	kit, err := newKit(ctx, c, archives)
	if err != nil {
		return nil, err
	}
	first := len(c.Machines)
	for range n {
		if err := c.addMachine(ctx, kit); err != nil {
			return nil, err
		}
	}
	added := c.Machines[first:]
	if err := route(c.plane, c.all()); err != nil {
		return nil, err
	}
	for _, node := range added {
		if err := c.machineReady(ctx, node); err != nil {
			return nil, err
		}
		c.dispatch.scheduler.add(node)
	}
	return added, nil
}

// all are the nodes of both kinds.
func (c *Cluster) all() []*Node { return append(append([]*Node{}, c.Nodes...), c.Machines...) }

func (c *Cluster) addMachine(ctx context.Context, kit *kit) error {
	node, err := newNode(c.plane, len(c.all())+1)
	if node == nil {
		return err
	}
	c.Machines = append(c.Machines, node) // from here on it is closed with the cluster
	node.machine = &realMachine{dir: filepath.Join(c.Dir, node.Name)}
	if err != nil {
		return err
	}
	for _, s := range [][2]string{ // without them pods of one node reach each other past all rules
		{"bridge/bridge-nf-call-iptables", "1"},
		{"bridge/bridge-nf-call-ip6tables", "1"},
	} {
		if err := node.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if _, err := node.create(ctx, c.plane); err != nil {
		return err
	}
	// A Service's address is translated after a route to it was found. Most nodes have a default one.
	if err := node.Batch("route add "+serviceNetwork+" via "+apiAddr, "route add "+serviceNetwork6+" via "+apiAddr6); err != nil {
		return err
	}
	kubeconfig, err := c.plane.authority.user("kubelet-"+node.Name, pkix.Name{CommonName: "system:node:" + node.Name, Organization: []string{"system:nodes"}})
	if err != nil {
		return err
	}
	if err := node.configure(c.plane, kit, kubeconfig); err != nil {
		return err
	}
	return errors.Join(node.boot(), node.startProxy(c.plane, c.options.ProxyMode))
}

// boot starts the machine of a node.
func (n *Node) boot() error {
	m := n.machine
	var err error
	if m.cgroups, err = machine.MakeCgroups(n.Name); err != nil {
		return err
	}
	config := filepath.Join(m.dir, "machine.json")
	if err := n.machineConfig().Write(config); err != nil {
		return err
	}
	return n.Do(func() error {
		cmd := exec.Command(m.kit.box, "machine", config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
		m.process, err = process.Start("machine", m.dir, cmd)
		return err
	})
}

// stop is a power cut: the kernel ends everything with the machine's first process.
func (m *realMachine) stop() error {
	if m.process == nil {
		return nil
	}
	errs := []error{m.process.Kill()}
	m.process = nil
	for _, g := range m.cgroups {
		errs = append(errs, g.Remove())
	}
	return errors.Join(errs...)
}

// Reboot cuts a machine's power and starts it again: the same pods come back,
// with other addresses.
func (c *Cluster) Reboot(ctx context.Context, n *Node) error {
	if err := errors.Join(n.machine.stop(), n.boot()); err != nil {
		return err
	}
	return c.machineReady(ctx, n)
}

// Exec runs a container's BoxImage program with arguments, such as talk tcp
// 10.0.0.1:80, in a pod of a machine. The pod may be deploy/NAME, too.
func (c *Cluster) Exec(ctx context.Context, namespace, pod string, args ...string) error {
	_, err := c.Kubectl(ctx, "", append([]string{"-n", namespace, "exec", pod, "--", "/box"}, args...)...)
	return err
}

// machineReady waits until the kubelet says that its node is ready.
func (c *Cluster) machineReady(ctx context.Context, n *Node) error {
	err := until(ctx, "node "+n.Name, func(ctx context.Context) error {
		select {
		case <-n.machine.process.Done():
			return errors.New("its machine ended")
		default:
		}
		node, err := c.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errors.New("it is not ready")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.machine.logs())
	}
	return nil
}

func (m *realMachine) logs() string {
	all := m.process.Tail()
	for _, name := range []string{"containerd", "import", "kubelet"} {
		b, err := os.ReadFile(filepath.Join(m.dir, name+".log"))
		if err == nil {
			all += "\n" + name + " said:\n" + string(b[max(0, len(b)-4096):])
		}
	}
	return all
}
