package suggest_test

import (
	"testing"

	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/suggest"
)

// A month: 20,000 edges, 200 changes of labels, 100 revisions of policies.
func BenchmarkSuggestMonth(b *testing.B) {
	for _, mode := range []suggest.Mode{suggest.Add, suggest.Replace, suggest.Tighten} {
		b.Run(string(mode), func(b *testing.B) {
			c := ht.Large(1, 20_000)
			for b.Loop() {
				h, err := history.New(c.Input)
				if err != nil {
					b.Fatal(err)
				}
				r, err := suggest.Run(h, suggest.Options{Mode: mode})
				if err != nil {
					b.Fatal(err)
				}
				if len(r.Policies) == 0 || !r.Proven() {
					b.Fatalf("%d policies, %d refused, %d unaccounted for", len(r.Policies), len(r.Proof.Refused), r.Proof.Loose.Unexplained)
				}
			}
		})
	}
}
