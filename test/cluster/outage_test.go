package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/cluster/shop"
)

// TestTheAPIServerIsAway: no flow is lost and none is named wrongly, a gap says
// since when names may be old, and what is new afterwards is named.
func TestTheAPIServerIsAway(t *testing.T) {
	s := openShop(t, "outage-shop")
	deeds, err := s.Act(t.Context())
	must(t, err)

	must(t, lab.StopAPI())
	for back := time.Now().Add(outage(t)); time.Now().Before(back); {
		more, err := s.Act(t.Context())
		must(t, err)
		deeds = append(deeds, more...)
	}
	must(t, lab.StartAPI(t.Context()))
	more, err := s.Act(t.Context())
	must(t, err)
	deeds = append(deeds, more...)

	deeds = append(deeds, replaced(t, s)...)
	compare(t, s.Namespace, deeds)
	gaps(t)
}

// replaced replaces a pod, and lets the new one talk.
func replaced(t *testing.T, s *shop.Shop) []ledger.Deed {
	t.Helper()
	newSecond()
	must(t, s.Replace(t.Context(), lab.Cluster, lab.enforcer, "web"))
	deeds, err := s.Act(t.Context())
	must(t, err)
	return deeds
}

// gaps waits until coverage says that names were old, at every node.
func gaps(t *testing.T) {
	t.Helper()
	must(t, lab.product.Until(t.Context(), answerBy, "the gaps", func() error {
		out, err := lab.product.Ask(t.Context(), "query", "coverage-gaps", "-o", "csv")
		if err != nil {
			return err
		}
		for _, n := range lab.Nodes {
			for _, who := range []string{"kubernetes", "collector"} {
				if !strings.Contains(out, fmt.Sprintf("\n%s,%s,", n.Name, who)) {
					return fmt.Errorf("none of %s, %s: %s", n.Name, who, out)
				}
			}
		}
		return nil
	}))
}

// outage is how long the API server is away.
func outage(t *testing.T) time.Duration {
	t.Helper()
	if soak() {
		return time.Minute
	}
	return 5 * time.Second
}
