package replay_test

import (
	"testing"

	"github.com/flowaudit/flowaudit/policy/history"
	ht "github.com/flowaudit/flowaudit/policy/history/historytest"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// A change of 200 policies against a month: 20,000 edges, 200 changes of
// labels, 100 revisions of policies.
func BenchmarkReplayMonth(b *testing.B) {
	c := ht.Large(1, 20_000)
	change := &replay.Change{}
	for n := range 200 {
		change.Apply = append(change.Apply, ht.LargePolicy(n, n%50, map[string]string{"tier": "1"}))
	}
	for b.Loop() {
		h, err := history.New(c.Input)
		if err != nil {
			b.Fatal(err)
		}
		r, err := replay.Run(h, change, replay.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if r.Edges != 20_000 {
			b.Fatal(r.Edges)
		}
	}
}
