// Command bench measures what flowaudit costs and loses, beside other programs in the same run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flowaudit/flowaudit/proto/zstd"
)

// options of a run.
type options struct {
	seconds int // of live traffic at each rate
	flows   int // in the store
	outage  time.Duration
	agents  int
	only    string
	dir     string
	store   string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == bareReader {
		os.Exit(readBare())
	}
	zstd.Register()
	o := options{}
	flag.IntVar(&o.seconds, "seconds", 10, "seconds of live traffic at each rate; in 10 s a window ends")
	flag.IntVar(&o.flows, "flows", 10_000_000, "flows in the store")
	flag.StringVar(&o.only, "only", "", "some parts only, comma-separated: decode, names, policy, nflog, conntrack, tap, memory, alert, outage, agents, store, clickhouse")
	flag.DurationVar(&o.outage, "outage", 30*time.Second, "how long the collector is away")
	flag.IntVar(&o.agents, "agents", 5000, "how many agents report to one collector")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "where the store is made, on the disk to measure")
	flag.StringVar(&o.store, "store", "", "a store to fill once and ask in later runs too; empty makes one in -dir and removes it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// result is one line of the table.
type result struct {
	what, who string
	figures   []string
}

// part is what is measured together.
type part struct {
	name string
	run  func(context.Context, options) ([]result, error)
}

func parts() []part {
	return []part{
		{"decode", benchDecode},
		{"names", benchNames},
		{"policy", benchPolicy},
		{"nflog", benchNFLOG},
		{"conntrack", benchConntrack},
		{"tap", benchTap},
		{"memory", benchMemory},
		{"alert", benchAlert},
		{"outage", benchOutage},
		{"agents", benchAgents},
		{"store", benchStore},
		{"clickhouse", benchClickHouse},
	}
}

// chosen are the parts of a list, or all.
func chosen(only string) ([]part, error) {
	if only == "" {
		return parts(), nil
	}
	var out []part
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(parts(), func(p part) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only %q: no such part", name)
		}
		out = append(out, parts()[i])
	}
	return out, nil
}

func run(ctx context.Context, o options) error {
	chosen, err := chosen(o.only)
	if err != nil {
		return err
	}
	var all []result
	for _, part := range chosen {
		fmt.Fprintf(os.Stderr, "measuring: %s …\n", part.name)
		began := time.Now()
		results, err := part.run(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "  %s\n", time.Since(began).Round(time.Second))
		all = append(all, results...)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // said for the reader only
	fmt.Printf("Linux %s, %d processors, %s\n\n", strings.TrimSpace(string(kernel)), runtime.NumCPU(), runtime.Version())
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	for _, r := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\n", r.what, r.who, strings.Join(r.figures, "\t"))
	}
	return t.Flush()
}

// perEvent is processor time for each event in microseconds.
func perEvent(cpu time.Duration, events uint64) string {
	if events == 0 {
		return "no event"
	}
	return fmt.Sprintf("%.2f µs an event", float64(cpu.Nanoseconds())/1000/float64(events))
}

func lossText(sent, seen uint64) string {
	if seen >= sent {
		return "no loss"
	}
	return fmt.Sprintf("%.2f %% lost", float64(sent-seen)*100/float64(sent))
}
