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
	shop          *shop.Shop
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
const answerBy = 30 * time.Second

// everything selects flows of any verdict.
const everything = "allowed,denied,unanswered,unknown"

// compare holds what was done since a time in a namespace against what
// flowaudit answers, until they agree.
func compare(t *testing.T, namespace string, since time.Time, deeds []ledger.Deed) {
	t.Helper()
	must(t, lab.product.Until(t.Context(), answerBy, "the answers to agree with what was done", func() error {
		flows, err := lab.product.Flows(t.Context(), "-n", namespace, "--verdict", everything, "--since", since.Format(time.RFC3339Nano))
		if err != nil {
			return err
		}
		return ledger.Compare(deeds, flows)
	}))
}

// openShop makes the shop that several tests act in, one after the other.
func openShop(t *testing.T) *shop.Shop {
	t.Helper()
	if lab.shop == nil {
		s, err := shop.Open(t.Context(), lab.Cluster, lab.enforcer)
		must(t, err)
		lab.shop = s
	}
	return lab.shop
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
	s := openShop(t)
	since := time.Now()
	deeds, err := s.Act(t.Context())
	must(t, err)
	compare(t, shop.Namespace, since, deeds)
}

// soak tells whether tests may take minutes.
func soak() bool {
	return os.Getenv("FLOWAUDIT_SOAK") != ""
}
