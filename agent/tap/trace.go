package tap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/agent/nlmsg"
	"github.com/flowaudit/flowaudit/flow"
)

// Traced are packets whose way through netfilter is to be followed, as they
// come to the tap: before NAT. Only protocols with ports can be.
type Traced struct {
	Protocol flow.Protocol
	Src, Dst netip.Addr
	Port     uint16
}

const (
	// traceTime covers the first retries of a TCP connection, 1, 3, 7 and 15 s
	// after it, and of a program that was rejected.
	traceTime = 20 * time.Second
	// traceRate bounds what traces cost when many packets are alike.
	traceRate = 20 // a second
	traceSet4 = "traced4"
	traceSet6 = "traced6"
	// traceReg is NFT_REG32_00: registers of 4 bytes, one after the other.
	traceReg = 8
)

// tracing lets the kernel tell what becomes of the packets in two sets: a rule
// that marks them (meta nftrace) changes no verdict.
func tracing(conn *nftables.Conn, table *nftables.Table) (first [][]expr.Any) {
	for _, name := range []string{traceSet4, traceSet6} {
		set := traceSet(table, name)
		_ = conn.AddSet(set, nil) // only the encoding of constants can fail
		first = append(first, traceRule(set))
	}
	return first
}

func traceSet(table *nftables.Table, name string) *nftables.Set {
	addr := nftables.TypeIPAddr
	if name == traceSet6 {
		addr = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: table, Name: name, Concatenation: true, HasTimeout: true, Timeout: traceTime,
		KeyType: nftables.MustConcatSetType(addr, addr, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

func traceRule(set *nftables.Set) []expr.Any {
	proto, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(8)
	if set.Name == traceSet6 {
		proto, offset, length = unix.NFPROTO_IPV6, 8, 32
	}
	next := traceReg + length/4 // behind both addresses
	return concat(family(proto), []expr.Any{
		&expr.Payload{DestRegister: traceReg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: traceReg, SetName: set.Name},
		&expr.Limit{Type: expr.LimitTypePkts, Rate: traceRate, Unit: expr.LimitTimeSecond, Burst: traceRate},
		&expr.Immediate{Register: register, Data: binaryutil.NativeEndian.PutUint32(1)},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: register},
	})
}

// element is the key of a set's element: each part fills whole registers.
func (t *Traced) element() nftables.SetElement {
	key := append(t.Src.AsSlice(), t.Dst.AsSlice()...)
	key = append(key, byte(t.Protocol), 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, t.Port), 0, 0)
	return nftables.SetElement{Key: key, Timeout: traceTime}
}

// Trace begins to follow packets for some seconds. A rule that then drops one
// is told by an Observation with EventDropped. Trace never waits; it returns
// false when earlier ones are not taken yet.
func (s *Source) Trace(packets []Traced) bool {
	select {
	case s.wanted <- packets:
		return true
	default:
		return false
	}
}

// trace takes the wishes until ctx ends.
func (s *Source) trace(ctx context.Context) error {
	told := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case packets := <-s.wanted:
			if err := s.table.Change(addTraced(packets)); err != nil && !told {
				told = true
				s.o.Logger.Warn("packets cannot be traced, so that the rules that refuse them are not known", "error", err)
			}
		}
	}
}

func addTraced(packets []Traced) func(*nftables.Conn, *nftables.Table) {
	return func(conn *nftables.Conn, table *nftables.Table) {
		for i := range packets {
			name := traceSet4
			if packets[i].Src.Is6() {
				name = traceSet6
			}
			_ = conn.SetAddElements(traceSet(table, name), []nftables.SetElement{packets[i].element()}) // as in tracing
		}
	}
}

// watchTraces joins the kernel's messages about traced packets.
func watchTraces() (*nlmsg.Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nftables traces: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		return nil, errors.Join(fmt.Errorf("join nftables traces: %w", err), conn.Close())
	}
	return nlmsg.NewReader(conn, notificationSize)
}

// readTraces reads what becomes of traced packets until ctx ends.
func (s *Source) readTraces(ctx context.Context) error {
	defer s.traces.Close()
	defer s.traces.StopWith(ctx)()
	d := traceDecoder{packets: make(map[uint32]flow.Observation)}
	out := s.o.Deliver(nil)
	for {
		datagram, err := s.traces.Next()
		switch {
		case errors.Is(err, nlmsg.ErrStopped):
			return nil
		case errors.Is(err, unix.ENOBUFS): // others may trace much more
			continue
		case err != nil:
			return fmt.Errorf("read nftables traces: %w", err)
		}
		for len(datagram) > 0 {
			h, payload, rest, err := nlmsg.Message(datagram)
			if err != nil {
				break
			}
			datagram = rest
			if o, ok := d.decode(h, payload); ok {
				o.Time = time.Now().UnixNano()
				out = append(out, o)
			}
		}
		if len(out) > 0 {
			out = s.o.Deliver(out)
		}
	}
}
