package tap

import (
	"context"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// A kernel before 5.12 keeps the table of a process that was killed. Its rules
// then log nothing any more once the lease has run out: a set of both address
// families, whose elements end by themselves.
const (
	leaseName  = "lease"
	leaseTime  = 30 * time.Second
	leaseRenew = 10 * time.Second
)

func leaseSet(table *nftables.Table) (*nftables.Set, []nftables.SetElement) {
	return &nftables.Set{Table: table, Name: leaseName, KeyType: nftables.TypeNFProto, HasTimeout: true, Timeout: leaseTime},
		[]nftables.SetElement{{Key: []byte{unix.NFPROTO_IPV4}, Timeout: leaseTime}, {Key: []byte{unix.NFPROTO_IPV6}, Timeout: leaseTime}}
}

func addLease(conn *nftables.Conn, table *nftables.Table) {
	set, elements := leaseSet(table)
	_ = conn.AddSet(set, elements) // only the encoding of constants can fail
}

// unleased is a rule that returns where the lease has run out.
func unleased() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Lookup{SourceRegister: register, SetName: leaseName, Invert: true},
		ret(),
	}
}

// renew keeps the lease until ctx ends.
func (s *Source) renew(ctx context.Context) error {
	ticker := time.NewTicker(leaseRenew)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if s.table.Owned() {
			continue
		}
		s.extend(last)
		last = time.Now()
	}
}

// extend replaces the elements, which do not live longer by being added again.
// One that has run out already, of a process that was stopped, left a gap.
func (s *Source) extend(last time.Time) {
	add := func(conn *nftables.Conn, table *nftables.Table) {
		set, elements := leaseSet(table)
		_ = conn.SetAddElements(set, elements) // as in addLease
	}
	if s.table.Change(func(conn *nftables.Conn, table *nftables.Table) {
		set, elements := leaseSet(table)
		_ = conn.SetDeleteElements(set, elements) // as in addLease
		add(conn, table)
	}) == nil {
		return
	}
	if err := s.table.Change(add); err != nil {
		s.o.Logger.Error("the tap's lease is not renewed, it ends soon", "error", err)
	}
	if now := time.Now(); now.Sub(last) > leaseTime {
		s.o.Lost(flow.Gap{
			Node: s.o.Node, Source: s.Name(), Kind: flow.GapSource, Start: last.Add(leaseTime), End: now,
			Detail: "the agent did not run, and so did not keep the tap open",
		})
	}
}
