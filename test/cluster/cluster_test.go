package cluster_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/cluster/product"
	"github.com/flowaudit/flowaudit/test/cluster/shop"
)

// lab is what all tests share: a cluster costs seconds.
var lab struct {
	*cluster.Cluster
	enforcer *enforce.Enforcer
	product  *product.Product

	ctx           context.Context // of the whole run
	networkBefore string          // the machine's own
	bin           string          // of flowaudit's programs
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "a cluster needs root for network namespaces")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	lab.ctx = ctx
	if os.Getenv(killedEnv) != "" {
		fmt.Fprintln(os.Stderr, "start a cluster to be killed:", waitToBeKilled())
		return 1
	}
	if err := begin(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "start a cluster:", err)
		return 1
	}
	code := m.Run()
	cancel()
	if err := end(); err != nil {
		fmt.Fprintln(os.Stderr, "end the cluster:", err)
		return 1
	}
	return code
}

func begin(ctx context.Context) error {
	var err error
	if lab.networkBefore, err = rootNetwork(); err != nil {
		return err
	}
	if lab.bin, err = product.Build(ctx); err != nil {
		return err
	}
	o := cluster.DefaultOptions()
	o.Progress = os.Stderr
	if mode := os.Getenv("FLOWAUDIT_PROXY"); mode != "" {
		o.ProxyMode = mode
	}
	if lab.Cluster, err = cluster.Start(ctx, o); err != nil {
		return err
	}
	nodes := make(map[string]enforce.Node)
	for _, n := range lab.Nodes {
		nodes[n.Name] = n
	}
	if lab.enforcer, err = enforce.Start(ctx, lab.Client, nodes, enforce.DefaultOptions()); err != nil {
		return err
	}
	lab.product, err = product.Start(ctx, lab.Cluster, product.Options{Bin: lab.bin})
	return err
}

// end is reached after a failed begin, too.
func end() error {
	var err error
	if lab.product != nil {
		err = lab.product.Close()
	}
	if lab.Cluster != nil {
		if e := lab.Close(); err == nil {
			err = e
		}
	}
	return err
}

// answerBy is how long flowaudit may take to have the answer.
const answerBy = time.Minute

// everything selects flows of any verdict.
const everything = "allowed,denied,unanswered,unknown"

// compare holds all that was done in a namespace against what flowaudit
// answers, until they agree.
func compare(t *testing.T, namespace string, deeds []ledger.Deed) {
	t.Helper()
	must(t, lab.product.Until(t.Context(), answerBy, "the answers to agree with what was done", func() error {
		flows, err := lab.product.Flows(t.Context(), "-n", namespace, "--verdict", everything)
		if err != nil {
			return err
		}
		return ledger.Compare(deeds, flows)
	}))
}

// openShop makes a shop that stays until the run's end: the pods of another
// would have the same addresses, and the last reports about these come late.
func openShop(t *testing.T, namespace string) *shop.Shop {
	t.Helper()
	s, err := shop.Open(t.Context(), lab.Cluster, lab.enforcer, namespace)
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheShop: allowed, denied, Service, IPv6, UDP and cross-node traffic, each
// named on both ends and counted once.
func TestTheShop(t *testing.T) {
	s := openShop(t, "shop")
	deeds, err := s.Act(t.Context())
	must(t, err)
	compare(t, s.Namespace, deeds)
}

// newSecond lets a second pass. The API's times have whole seconds: what a pod
// does in the one in which another takes its address, nobody can tell apart.
func newSecond() { time.Sleep(1100 * time.Millisecond) }

// soak tells whether tests may take minutes.
func soak() bool {
	return os.Getenv("FLOWAUDIT_SOAK") != ""
}
