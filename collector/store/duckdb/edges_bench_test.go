package duckdb

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
)

// Three million edge-hours of 20,000 edges, as a month has them.
func BenchmarkEdgesOfAMonth(b *testing.B) {
	ctx := b.Context()
	s, err := Open(ctx, Options{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	begin := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	m, err := s.openMonth(ctx, begin)
	if err != nil {
		b.Fatal(err)
	}
	first := begin.Unix() / 3600
	for _, q := range []string{
		fmt.Sprintf(`INSERT INTO %s.edge SELECT i, 'c', 6, 8080 + i %% 4, 1, 1, 1, 1, 0, 0, ''::BLOB,
			1, 1000 + i %% 1200, 'ns' || i %% 50, 'Deployment', 'w' || i %% 1200, '', ''::BLOB, 0, '{"app":"w' || i %% 1200 || '"}',
			1, 1000 + i // 17, 'ns' || i %% 49, 'Deployment', 'w' || i // 17, '', ''::BLOB, 0, '{"app":"w' || i // 17 || '"}' FROM range(20000) t(i)`, m.name),
		fmt.Sprintf(`INSERT INTO %s.hour SELECT i %% 20000, %d + (i // 20000) * 4 + i %% 4, (%d + (i // 20000) * 4) * 3600000, (%d + (i // 20000) * 4) * 3600000 + 1000, 10, 1000, 2000
			FROM range(3000000) t(i)`, m.name, first, first, first),
	} {
		if _, err := s.db.ExecContext(ctx, q); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		n, hours := 0, 0
		err := s.Edges(ctx, store.EdgesRequest{Sight: flow.SeeAll(), Since: begin, Until: begin.AddDate(0, 0, 30)}, func(e *flow.Edge) bool { n++; hours += e.Hours; return true })
		if err != nil {
			b.Fatal(err)
		}
		if n != 20_000 || hours != 3_000_000 {
			b.Fatalf("%d edges of %d hours", n, hours)
		}
	}
}
