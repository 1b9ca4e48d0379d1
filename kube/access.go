package kube

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

	Files []string // files that are tried where none is named
}

// accountToken is where a pod that may ask the API server finds its token.
const accountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// Usual makes the access what kubectl would use, where none was named: the
// files of $KUBECONFIG, ~/.kube/config, or in a pod its service account. It
// reports whether there is any.
func (a *Access) Usual(getenv func(string) string) bool {
	if a.Wanted() {
		return true
	}
	if files := getenv("KUBECONFIG"); files != "" {
		a.Files = filepath.SplitList(files)
		return true
	}
	if home := getenv("HOME"); home != "" {
		file := filepath.Join(home, ".kube", "config")
		if _, err := os.Stat(file); err == nil {
			a.Files = []string{file}
			return true
		}
	}
	if _, err := os.Stat(accountToken); err == nil && getenv("KUBERNETES_SERVICE_HOST") != "" && a.Context == "" {
		a.InCluster = true
		return true
	}
	return false
}

// Contexts names the contexts of the kubeconfig; none if it cannot be read.
func (a *Access) Contexts(getenv func(string) string) []string {
	if !a.Usual(getenv) || a.InCluster {
		return nil
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.Kubeconfig, Precedence: a.Files}
	raw, err := rules.Load()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(raw.Contexts))
}

// String names the access, for people.
func (a *Access) String() string {
	switch {
	case a.InCluster:
		return "the pod's service account"
	case a.Context != "":
		return fmt.Sprintf("context %q of %s", a.Context, a.files())
	}
	return "the current context of " + a.files()
}

func (a *Access) files() string {
	if a.Kubeconfig != "" {
		return a.Kubeconfig
	}
	return strings.Join(a.Files, ", ")
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

// Config reads what a client needs.
func (a *Access) Config(userAgent string) (*rest.Config, error) {
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
	config, err := a.Config(userAgent)
	if err != nil {
		return nil, err
	}
	s, err := newServer(config)
	if err != nil {
		return nil, err
	}
	return s.restClient(v)
}

func (a *Access) load() (*rest.Config, error) {
	if a.InCluster {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w: --in-cluster works in a pod only, with a mounted token; elsewhere give --kubeconfig", err)
		}
		return c, nil
	}
	if err := a.readable(); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.Kubeconfig, Precedence: a.Files}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.Context})
	c, err := loader.ClientConfig()
	if err != nil {
		if raw, bad := loader.RawConfig(); bad == nil && a.Context != "" && raw.Contexts[a.Context] == nil {
			return nil, fmt.Errorf("read kubeconfig %s: it has no context %q, but %s", a.files(), a.Context, list(slices.Sorted(maps.Keys(raw.Contexts))))
		}
		return nil, fmt.Errorf("read kubeconfig %s: %w", a.files(), err)
	}
	return c, nil
}

// readable reports an error where no file is there. Of several, as kubectl
// takes them, some may be missing.
func (a *Access) readable() (err error) {
	if a.Kubeconfig != "" {
		_, err = os.Stat(a.Kubeconfig)
		return err
	}
	for _, file := range a.Files {
		if _, err = os.Stat(file); err == nil {
			return nil
		}
	}
	return err
}

func list(names []string) string {
	if len(names) == 0 {
		return "none at all"
	}
	return strings.Join(names, ", ")
}
