package tap

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nflog"
	"github.com/flowaudit/flowaudit/flow"
)

const (
	// snapLength holds an IPv6 header, some extension headers and a TCP header.
	snapLength = 128
	// untrackedRate bounds the records of packets that bypass connection
	// tracking: every one of their packets would be logged.
	untrackedRate = 100 // a second
	register      = unix.NFT_REG_1
)

// hooks are where attempts are logged. Before anything decides, and again
// where NAT has translated the destination: only then it is known.
var (
	beforePolicy = nftables.ChainPriorityMangle // -150: after conntrack, before NAT
	afterNAT     = nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 1)
)

// rules puts into a table, in nft's words and without a limit to pods:
//
//	chain attempt { ip saddr . ip daddr . meta l4proto . th dport @traced4 limit rate 20/second burst 20 packets meta nftrace set 1
//	        ip6 saddr . ip6 daddr . meta l4proto . th dport @traced6 limit rate 20/second burst 20 packets meta nftrace set 1
//	        goto record
//	}
//	chain translated { goto record-nat }
//	chain untracked { meta l4proto icmpv6 return; goto some }
//	chain record {
//	        ct zone 0 log group G snaplen 128 return
//	        log prefix "zone" group G snaplen 128
//	}
//	chain record-nat { … the same with the prefixes "nat" and "zone nat" }
//	chain some { limit rate 100/second burst 100 packets log prefix "untracked" group G snaplen 128 }
//	chain prerouting { type filter hook prerouting priority -150
//	        ct state established,related return
//	        meta pkttype != host return
//	        ip ttl <= 1 return
//	        ip6 hoplimit <= 1 return
//	        ct state new ct status & confirmed == 0 goto attempt
//	        ct state untracked goto untracked
//	}
//	chain output { type filter hook output priority -150
//	        ct state established,related return
//	        ip saddr 127.0.0.0/8 ip daddr 127.0.0.0/8 return
//	        ip6 saddr ::1 return
//	        ct state new ct status & confirmed == 0 goto attempt
//	}
//	chain prerouting-nat, output-nat { type filter hook … priority -99
//	        ct state established,related return
//	        ct state new ct status & (confirmed | dnat) == dnat goto translated
//	}
//
// Where the kernel does not remove the table with the process, those three begin
// with "meta nfproto != @lease return": the process renews the lease, and
// without it nothing is logged.
//
// With pods, the first three chains go on only with packets from or to them.
// No rule decides anything. What never could be forwarded (a multicast, a
// packet at the end of its life) is no attempt that was refused; within the
// loopback there is no policy, and its connections are not read either.
func rules(group uint16, pods []netip.Prefix) func(*nftables.Conn, *nftables.Table, bool) {
	return func(conn *nftables.Conn, table *nftables.Table, owned bool) {
		r := ruleset{conn, table}
		r.records(group)
		var first [][]expr.Any
		if !owned {
			addLease(conn, table)
			first = append(first, unleased())
		}
		r.chain("attempt", nil, nil, slices.Concat(first, tracing(conn, table), perPod(pods, "record"))...)
		r.chain("translated", nil, nil, slices.Concat(first, perPod(pods, "record-nat"))...)
		noNeighbours := concat(protocolIs(unix.IPPROTO_ICMPV6), verdict(expr.VerdictReturn, ""))
		r.chain("untracked", nil, nil, slices.Concat(first, [][]expr.Any{noNeighbours}, perPod(pods, "some"))...)
		r.chain("prerouting", nftables.ChainHookPrerouting, beforePolicy,
			concat(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictReturn, "")),
			[]expr.Any{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: register}, compare(expr.CmpOpNeq, []byte{unix.PACKET_HOST}), ret()},
			concat(family(unix.NFPROTO_IPV4), header(8, 1), []expr.Any{compare(expr.CmpOpLte, []byte{1}), ret()}),
			concat(family(unix.NFPROTO_IPV6), header(7, 1), []expr.Any{compare(expr.CmpOpLte, []byte{1}), ret()}),
			concat(unconfirmed(flow.StatusConfirmed, 0), verdict(expr.VerdictGoto, "attempt")),
			concat(state(expr.CtStateBitUNTRACKED), verdict(expr.VerdictGoto, "untracked")))
		r.chain("output", nftables.ChainHookOutput, beforePolicy,
			concat(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictReturn, "")),
			concat(address(source, loopback4()), address(destination, loopback4()), verdict(expr.VerdictReturn, "")),
			concat(address(source, netip.PrefixFrom(netip.IPv6Loopback(), 128)), verdict(expr.VerdictReturn, "")),
			concat(unconfirmed(flow.StatusConfirmed, 0), verdict(expr.VerdictGoto, "attempt")))
		for name, hook := range map[string]*nftables.ChainHook{"prerouting-nat": nftables.ChainHookPrerouting, "output-nat": nftables.ChainHookOutput} {
			r.chain(name, hook, afterNAT,
				concat(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictReturn, "")),
				concat(unconfirmed(flow.StatusConfirmed|flow.StatusDstNAT, flow.StatusDstNAT), verdict(expr.VerdictGoto, "translated")))
		}
	}
}

type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// chain adds a chain, a base chain where it has a hook, and its rules.
func (r ruleset) chain(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, all ...[]expr.Any) {
	c := &nftables.Chain{Name: name, Table: r.table}
	if hook != nil {
		c.Type, c.Hooknum, c.Priority = nftables.ChainTypeFilter, hook, priority
	}
	r.conn.AddChain(c)
	for _, exprs := range all {
		r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: exprs})
	}
}

// records adds the chains that log.
func (r ruleset) records(group uint16) {
	for name, prefixes := range map[string][2]string{"record": {"", nflog.AttemptInZone}, "record-nat": {nflog.AttemptAfterNAT, nflog.AttemptInZoneNAT}} {
		r.chain(name, nil, nil,
			concat([]expr.Any{&expr.Ct{Register: register, Key: expr.CtKeyZONE}, compare(expr.CmpOpEq, make([]byte, 2))},
				record(group, prefixes[0]), verdict(expr.VerdictReturn, "")),
			record(group, prefixes[1]))
	}
	r.chain("some", nil, nil, concat([]expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: untrackedRate, Unit: expr.LimitTimeSecond, Burst: untrackedRate},
	}, record(group, nflog.AttemptUntracked)))
}

func record(group uint16, prefix string) []expr.Any {
	l := &expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN, Group: group, Snaplen: snapLength}
	if prefix != "" {
		l.Key |= 1 << unix.NFTA_LOG_PREFIX
		l.Data = []byte(prefix)
	}
	return []expr.Any{l}
}

// perPod gives the rules that lead to a chain: one, or one for each prefix and end.
func perPod(pods []netip.Prefix, chain string) (all [][]expr.Any) {
	for _, p := range pods {
		for _, end := range []int{source, destination} {
			all = append(all, concat(address(end, p), verdict(expr.VerdictGoto, chain)))
		}
	}
	if len(pods) == 0 {
		all = [][]expr.Any{verdict(expr.VerdictGoto, chain)}
	}
	return all
}

func concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func ret() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: register, Data: data}
}

// masked keeps the bits of a mask in the register.
func masked(mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// state matches where one of the bits is set.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: register, Key: expr.CtKeySTATE},
		masked(binaryutil.NativeEndian.PutUint32(bits)),
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// unconfirmed matches a new connection whose status, masked, is as wanted.
func unconfirmed(mask, want uint32) []expr.Any {
	return concat(state(expr.CtStateBitNEW), []expr.Any{
		&expr.Ct{Register: register, Key: expr.CtKeySTATUS},
		masked(binaryutil.NativeEndian.PutUint32(mask)),
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(want)),
	})
}

func family(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register}, compare(expr.CmpOpEq, []byte{proto})}
}

func protocolIs(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, compare(expr.CmpOpEq, []byte{p})}
}

// header loads bytes of the IP header.
func header(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

// The ends of a packet.
const (
	source = iota
	destination
)

func loopback4() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
}

// address matches where one end's address is inside a prefix.
func address(end int, p netip.Prefix) []expr.Any {
	proto, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if p.Addr().Is6() {
		proto, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	if end == destination {
		offset += length
	}
	return concat(family(proto), header(offset, length), []expr.Any{
		masked(maskOf(p.Bits(), int(length))), compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()),
	})
}

func maskOf(bits, length int) []byte {
	mask := make([]byte, length)
	for i := range mask {
		n := min(max(bits-8*i, 0), 8)
		mask[i] = byte(uint16(0xff) << (8 - n))
	}
	return mask
}
