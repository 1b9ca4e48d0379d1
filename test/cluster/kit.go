package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/flowaudit/flowaudit/test/cluster/image"
	"github.com/flowaudit/flowaudit/test/cluster/machine"
)

// kit is what machines are made of.
type kit struct {
	box        string // the first process, and the program of BoxImage
	containerd string // and beside it its shim and ctr
	runc       string
	plugins    string // directory of network plugins
	archives   []string
}

func newKit(ctx context.Context, c *Cluster, archives []string) (*kit, error) {
	k := &kit{box: filepath.Join(c.Dir, "box"), archives: archives}
	for path, program := range map[*string][2]string{
		&k.containerd: {"containerd", "usr/bin/containerd"},
		&k.runc:       {"runc", "usr/sbin/runc"},
		&k.plugins:    {"containernetworking-plugins", "usr/lib/cni/bridge"},
	} {
		var err error
		if *path, err = unpacked(ctx, c.options.Progress, program[0], program[1]); err != nil {
			return nil, err
		}
	}
	k.plugins = filepath.Dir(k.plugins)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", k.box, "github.com/flowaudit/flowaudit/test/cluster/box")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := run(build); err != nil {
		return nil, err
	}
	agnhost := filepath.Join(c.Dir, "agnhost")
	if err := os.Link(k.box, agnhost); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the image %s: %w", AgnhostImage, err)
	}
	own := []image.Image{
		{Name: pauseImage, Program: k.box, Entrypoint: []string{"pause"}},
		{Name: BoxImage, Program: k.box},
		{Name: AgnhostImage, Program: agnhost},
	}
	for i, img := range own {
		archive := filepath.Join(c.Dir, fmt.Sprintf("image-%d.tar", i))
		if err := img.Archive(archive); err != nil {
			return nil, err
		}
		k.archives = append(k.archives, archive)
	}
	return k, nil
}

// containerdConfig is for containerd 1.6, which Debian 12 has, and later ones.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%s"
  restrict_oom_score_adj = true # a test may not have the right to lower it
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%s"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "%s"
      SystemdCgroup = false
`

const networkConfig = `{"cniVersion": "0.4.0", "name": "flowaudit", "plugins": [{
	"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}], [{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
}]}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
resolvConf: ""
clusterDNS: [%s]
clusterDomain: cluster.local
maxOpenFiles: 20000
oomScoreAdj: 0
staticPodPath: %s
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
syncFrequency: 5s
`

// StaticPods is the directory whose manifests the machine's kubelet runs by itself.
func (n *Node) StaticPods() string { return filepath.Join(n.machine.dir, "static") }

// configure writes what the machine's daemons read.
func (n *Node) configure(p *plane, k *kit, kubeconfig string) error {
	m := n.machine
	m.kit, m.kubelet, m.kubeconfig = k, p.binary("kubelet"), kubeconfig
	cidrs := n.podCIDRs()
	for name, text := range map[string]string{
		"containerd.toml":            fmt.Sprintf(containerdConfig, pauseImage, k.plugins, k.runc),
		"network/flowaudit.conflist": fmt.Sprintf(networkConfig, cidrs[0], cidrs[1]),
		"kubelet.yaml":               fmt.Sprintf(kubeletConfig, p.authority.path(caFile), apiAddr, n.StaticPods()),
		"static/.keep":               "",
	} {
		path := filepath.Join(m.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// machineConfig starts containerd, imports the images and starts kubelet.
func (n *Node) machineConfig() machine.Config {
	m, k := n.machine, n.machine.kit
	programs := filepath.Dir(k.containerd)
	path := []string{"PATH=" + programs + ":" + filepath.Dir(k.runc) + ":" + os.Getenv("PATH")}
	at := func(name string) string { return filepath.Join(m.dir, name) }
	steps := []machine.Step{{
		Name: "containerd", Args: []string{k.containerd, "--config", at("containerd.toml")}, Env: path, Daemon: true,
		Ready: "/run/containerd/containerd.sock",
	}}
	for _, archive := range k.archives {
		steps = append(steps, machine.Step{Name: "import", Args: []string{filepath.Join(programs, "ctr"), "-n", "k8s.io", "images", "import", archive}})
	}
	return machine.Config{
		Name: n.Name, Dir: m.dir, Cgroups: m.cgroups,
		Binds: map[string]string{"/var/lib/kubelet": at("kubelet"), "/var/lib/containerd": at("containerd"), "/etc/cni/net.d": at("network")},
		Steps: append(steps, machine.Step{Name: "kubelet", Daemon: true, Env: path, Args: []string{
			m.kubelet, "--config=" + at("kubelet.yaml"), "--kubeconfig=" + m.kubeconfig, "--hostname-override=" + n.Name,
			"--node-ip=" + n.IPv4.String() + "," + n.IPv6.String(), "--v=2",
		}}),
	}
}
