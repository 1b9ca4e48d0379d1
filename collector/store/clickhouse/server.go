package clickhouse

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// server is what a server can do. What an old one lacks costs disk or comfort,
// never an answer.
type server struct {
	major, minor uint64
	// dictionaries: LowCardinality columns.
	dictionaries bool
	// codecs: compression by column.
	codecs bool
	// milliseconds: the views' times have them; without, they are whole seconds.
	milliseconds bool
	// skipping: indices that skip granules.
	skipping bool
	// textSettings: settings whose values are no numbers.
	textSettings bool
	// topK is what it calls the filter of ORDER BY … LIMIT, which fails in 26.5
	// when rows come in at the same time; empty if it has none.
	topK string
}

// oldest is the oldest server that is known to do.
const oldest = 18*100 + 16

// ask finds out what a server can do.
func ask(ctx context.Context, conn driver.Conn) (server, error) {
	var version string
	if err := conn.QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		return server{}, err
	}
	s, err := capabilities(version)
	if err != nil {
		return s, err
	}
	return s, conn.QueryRow(ctx, "SELECT max(name) FROM system.settings WHERE name = 'use_top_k_dynamic_filtering'").Scan(&s.topK)
}

func capabilities(version string) (server, error) {
	var s server
	if _, err := fmt.Sscanf(version, "%d.%d", &s.major, &s.minor); err != nil {
		return s, fmt.Errorf("the server's version %q cannot be read", version)
	}
	v := s.major*100 + s.minor
	if v < oldest {
		return s, fmt.Errorf("the server is version %s: 18.16 is the oldest that flowaudit can use", version)
	}
	s.dictionaries = v >= 19*100+6
	s.codecs = v >= 19*100+11
	s.skipping = v >= 20*100+1
	s.milliseconds = v >= 20*100+8
	s.textSettings = v >= 20*100+8
	return s, nil
}
