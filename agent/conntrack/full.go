package conntrack

import (
	"fmt"
	"time"

	ctnetlink "github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/flow"
)

// drops counts the packets that connection tracking itself has dropped since
// the kernel began: of new connections, before any rule sees them.
type drops struct {
	all   uint32 // statistics' drop
	raced uint32 // those of two packets that began one connection at once, and of NAT's clashes: insert_failed
}

// dropsOf sums up the processors' counters, which wrap.
func dropsOf(stats []ctnetlink.Stats) (d drops) {
	for _, s := range stats {
		d.all += s.Drop
		d.raced += s.InsertFailed
	}
	return d
}

// full is how many packets were dropped since before because the table was full.
func (d drops) full(before drops) uint64 {
	all, raced := d.all-before.all, d.raced-before.raced
	if all <= raced {
		return 0
	}
	return uint64(all - raced)
}

// tellFull tells a full table as a gap: what it drops no rule sees, and so
// neither an event nor a log tells of it.
func (s *Source) tellFull(now time.Time) error {
	stats, err := s.stats()
	if err != nil {
		return fmt.Errorf("read conntrack's statistics: %w", err)
	}
	d := dropsOf(stats)
	if n := d.full(s.drops); n > 0 && !s.looked.IsZero() {
		s.o.Lost(flow.Gap{
			Node: s.o.Node, Source: s.Name(), Kind: flow.GapTable, Start: s.looked, End: now, Lost: n,
			Detail: "the kernel's table of connections was full and it dropped packets of new ones: raise net.netfilter.nf_conntrack_max",
		})
	}
	s.drops, s.looked = d, now
	return nil
}
