package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/flowaudit/flowaudit/test/cluster/process"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// The networks exist in this cluster's namespaces only.
const (
	nodeNetwork     = "10.99.0.0/24"
	nodeNetwork6    = "fd99::/64"
	apiAddr         = "10.99.0.1"
	apiAddr6        = "fd99::1"
	apiURL          = "https://" + apiAddr + ":6443"
	apiService      = "10.96.0.1"
	serviceNetwork  = "10.96.0.0/16"
	serviceNetwork6 = "fd00:96::/112"
	serviceCIDRs    = serviceNetwork + "," + serviceNetwork6
	podCIDRs        = "10.244.0.0/16,fd00:244::/32"
	etcdURL         = "http://127.0.0.1:2379"
)

// plane is the control plane: etcd, API server and controllers in a network
// namespace with the bridge that joins the nodes.
type plane struct {
	ns        *netlab.Namespace
	dir       string // of this cluster's files
	binaries  string
	etcd      string
	authority *authority
	admin     string // kubeconfig
	config    *rest.Config
	client    *kubernetes.Clientset

	processes map[string]*process.Process
	names     *nameServer
	runs      int // of the API server
}

// newPlane makes the namespace and the credentials.
func newPlane(dir, binaries, etcd string) (*plane, error) {
	ns, err := netlab.New("plane")
	if err != nil {
		return nil, err
	}
	p := &plane{ns: ns, dir: dir, binaries: binaries, etcd: etcd, processes: make(map[string]*process.Process)}
	return p, errors.Join(p.network(), p.credentials())
}

func (p *plane) network() error {
	return p.ns.Batch(
		"link add br0 type bridge",
		"link set br0 up",
		"addr add "+apiAddr+"/24 dev br0",
		"addr add "+apiAddr6+"/64 dev br0 nodad",
	)
}

func (p *plane) credentials() error {
	pki := filepath.Join(p.dir, "pki")
	if err := os.Mkdir(pki, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	var err error
	if p.authority, err = newAuthority(pki); err != nil {
		return err
	}
	err = p.authority.issue("kube-apiserver", pkix.Name{CommonName: "kube-apiserver"},
		netip.MustParseAddr(apiAddr), netip.MustParseAddr(apiAddr6), netip.MustParseAddr(apiService), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		return err
	}
	if p.admin, err = p.authority.user("admin", pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}); err != nil {
		return err
	}
	p.config, err = clientcmd.BuildConfigFromFlags("", p.admin)
	if err != nil {
		return fmt.Errorf("read %s: %w", p.admin, err)
	}
	p.config.QPS, p.config.Burst = 5000, 10000
	p.config.ContentType, p.config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	p.config.Dial = p.dial
	if p.client, err = kubernetes.NewForConfig(p.config); err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	return nil
}

// dial reaches the API server from outside its namespace.
func (p *plane) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = p.ns.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// start runs etcd and the API server, and waits until it is ready.
func (p *plane) start(ctx context.Context) error {
	err := p.run("etcd", p.etcd, "--data-dir", filepath.Join(p.dir, "etcd"), "--listen-client-urls", etcdURL,
		"--advertise-client-urls", etcdURL, "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn",
		"--unsafe-no-fsync") // what a lost machine would lose is lost with the cluster
	if err != nil {
		return err
	}
	return p.startAPI(ctx)
}

// audit keeps what service accounts ask for.
const audit = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
`

// auditLog is that of one of the API server's runs. A server that has just
// started refuses what its roles allow, until it has read them.
func (p *plane) auditLog(run int) string {
	return filepath.Join(p.dir, fmt.Sprintf("audit-%d.log", run))
}

func (p *plane) startAPI(ctx context.Context) error {
	file := p.authority.path
	p.runs++
	if err := os.WriteFile(filepath.Join(p.dir, "audit.yaml"), []byte(audit), 0o600); err != nil {
		return fmt.Errorf("write the audit policy: %w", err)
	}
	err := p.run("kube-apiserver", p.binary("kube-apiserver"),
		"--etcd-servers="+etcdURL, "--bind-address="+apiAddr, "--advertise-address="+apiAddr, "--secure-port=6443",
		"--tls-cert-file="+file("kube-apiserver.crt"), "--tls-private-key-file="+file("kube-apiserver.key"),
		"--client-ca-file="+file(caFile), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--disable-admission-plugins=TaintNodesByCondition", // no controller here takes the taint away
		"--kubelet-client-certificate="+file("admin.crt"), "--kubelet-client-key="+file("admin.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+file(accountsPub),
		"--service-account-signing-key-file="+file(accountsKey),
		"--service-cluster-ip-range="+serviceCIDRs, "--allow-privileged=true", "--profiling=false", "--enable-priority-and-fairness=false",
		"--audit-policy-file="+filepath.Join(p.dir, "audit.yaml"), "--audit-log-path="+p.auditLog(p.runs))
	if err != nil {
		return err
	}
	return p.ready(ctx)
}

// ready waits until the API server answers.
func (p *plane) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	api := p.processes["kube-apiserver"]
	for {
		err := p.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-api.Done():
			return fmt.Errorf("the API server ended:\n%s", api.Tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w:\n%s", err, api.Tail())
		}
	}
}

// controllers are those that tests need: the more, the longer the start.
var controllers = []string{
	"serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller", "namespace-controller",
	"endpointslice-controller", "endpointslice-mirroring-controller", "deployment-controller", "replicaset-controller",
	"statefulset-controller", "daemonset-controller", "job-controller", "cronjob-controller", "garbage-collector-controller",
	"persistentvolume-binder-controller",
}

func (p *plane) startControllers() error {
	kubeconfig, err := p.authority.user("kube-controller-manager", pkix.Name{CommonName: "system:kube-controller-manager", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	return p.run("kube-controller-manager", p.binary("kube-controller-manager"),
		"--kubeconfig="+kubeconfig, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		"--bind-address=127.0.0.1", "--leader-elect=false", "--service-account-private-key-file="+p.authority.path(accountsKey),
		"--root-ca-file="+p.authority.path(caFile), "--kube-api-qps=200", "--kube-api-burst=400",
		"--controllers="+strings.Join(controllers, ","))
}

func (p *plane) binary(name string) string { return filepath.Join(p.binaries, name) }

// run starts a daemon in the control plane's namespace.
func (p *plane) run(name, program string, args ...string) error {
	cmd := p.ns.Command(context.Background(), program, args...)
	cmd.Env = append(os.Environ(), "GOGC=400") // there is more memory than processor time
	daemon, err := process.Start(name, p.dir, cmd)
	if err == nil {
		p.processes[name] = daemon
	}
	return err
}

// Close stops the daemons, etcd last, and removes the namespace.
func (p *plane) Close() error {
	var errs []error
	if p.names != nil {
		errs = append(errs, p.names.close())
	}
	for _, name := range []string{"kube-controller-manager", "kube-apiserver", "etcd"} {
		if daemon := p.processes[name]; daemon != nil {
			errs = append(errs, daemon.Kill()) // nothing is kept, so nothing has to be put in order
		}
	}
	return errors.Join(append(errs, p.ns.Close())...)
}
