package kube

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Access says how the API server is reached.
type Access struct {
	Kubeconfig string // file
	Context    string // of the file; its current one if empty
	InCluster  bool   // by the service account of the pod that this runs in
}

// Flags adds the options to a command line.
func (a *Access) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&a.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server, which names pods and Services")
	fs.StringVar(&a.Context, "context", "", "`name` of the kubeconfig's context (default: its current one)")
	fs.BoolVar(&a.InCluster, "in-cluster", false, "reach the API server by the service account of the pod that this runs in")
}

// Wanted reports whether an API server is to be asked.
func (a *Access) Wanted() bool { return a.Kubeconfig != "" || a.InCluster }

// Validate names options that exclude each other; manifests is the directory
// of the option of that name.
func (a *Access) Validate(manifests string) error {
	switch {
	case a.Kubeconfig != "" && a.InCluster:
		return errors.New("--kubeconfig and --in-cluster exclude each other: give one")
	case a.Wanted() && manifests != "":
		return errors.New("--manifests names pods without an API server: give it, or --kubeconfig or --in-cluster")
	case a.Context != "" && a.Kubeconfig == "":
		return errors.New("--context needs --kubeconfig")
	}
	return nil
}

// config reads what a client needs.
func (a *Access) config(userAgent string) (*rest.Config, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	c = rest.AddUserAgent(c, userAgent)
	c.QPS = -1 // a handful of watches needs no brake but the reflectors' backoff
	c.WarningHandler = rest.NoWarnings{}
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.ContentType = "application/vnd.kubernetes.protobuf"
	return c, nil
}

// REST makes a client of one group and version, whose objects are those of
// Kubernetes' API: v1 or networking.k8s.io/v1.
func (a *Access) REST(userAgent string, v schema.GroupVersion) (rest.Interface, error) {
	config, err := a.config(userAgent)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return restClient(config, client, v)
}

func (a *Access) load() (*rest.Config, error) {
	if a.InCluster {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w: --in-cluster works in a pod only, with a mounted token; elsewhere give --kubeconfig", err)
		}
		return c, nil
	}
	if _, err := os.Stat(a.Kubeconfig); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.Kubeconfig}
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", a.Kubeconfig, err)
	}
	return c, nil
}
