package conntrack

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLimits(t *testing.T) {
	const (
		noBytes  = "packets and bytes are absent: net.netfilter.nf_conntrack_acct is 0, set it to 1"
		noEvents = "connections are seen by dumps only: net.netfilter.nf_conntrack_events is 0, set it to 1 or 2"
	)
	for _, c := range []struct {
		name, acct, events string
		want               []string
	}{
		{"everything is on", "1\n", "1\n", nil},
		{"events follow listeners", "1\n", "2\n", nil},
		{"no accounting", "0\n", "2\n", []string{noBytes}},
		{"no events", "1\n", "0\n", []string{noEvents}},
		{"neither", "0\n", "0\n", []string{noBytes, noEvents}},
		{"not a number", "on\n", "1\n", []string{`whether packets and bytes are counted is not known: read sysctl nf_conntrack_acct: strconv.Atoi: parsing "on": invalid syntax`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"nf_conntrack_acct": c.acct, "nf_conntrack_events": c.events} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(c.want, limits(readSysctls(dir))); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("what cannot be read is not known", func(t *testing.T) {
		if got := limits(readSysctls(t.TempDir())); len(got) != 1 {
			t.Errorf("limits %q, want one that says so", got)
		}
	})
}
