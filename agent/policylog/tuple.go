// Package policylog reads the lines in which network plugins log what their policies decided.
package policylog

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Every parser of this package has one method:
//
//	Parse(line []byte, o *flow.Observation) (ok bool, err error)
//
// It reads a line without its end into o, which is empty but for Time, the
// moment of reading; a time stamp in the line replaces it. ok is false where
// the line is another of the program's messages; err says that the line should
// tell a verdict and cannot be read. A parser keeps none of the line's memory.

// packet begins an observation of a plugin's log.
func packet(o *flow.Observation, v flow.Verdict) {
	o.Source, o.Event, o.Verdict = flow.SourceLog, flow.EventPacket, v
}

// tuple fills in protocol, addresses and ports as the logs write them. Ports
// may be empty; an ICMP type that the log does not tell is unknown.
func tuple(o *flow.Observation, protocol, src, srcPort, dst, dstPort string) error {
	var err error
	if o.Original.Src, err = address(src); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if o.Original.Dst, err = address(dst); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	if o.Protocol, err = protocolOf(protocol, o.Original.Src); err != nil {
		return err
	}
	if o.Protocol.IsICMP() {
		o.ICMPType, o.ICMPCode = flow.ICMPUnknown, flow.ICMPUnknown
		return nil
	}
	if o.Original.SrcPort, err = port(srcPort); err != nil {
		return fmt.Errorf("source port: %w", err)
	}
	if o.Original.DstPort, err = port(dstPort); err != nil {
		return fmt.Errorf("destination port: %w", err)
	}
	return nil
}

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%.40q is no address", s)
	}
	return a.Unmap().WithZone(""), nil
}

func port(s string) (uint16, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%.20q is no port", s)
	}
	return uint16(n), nil
}

// protocolOf reads a protocol's name in any of the logs' spellings. Some write
// ICMP for both versions: the address tells which.
func protocolOf(s string, a netip.Addr) (flow.Protocol, error) {
	switch strings.ToLower(s) {
	case "icmp", "icmp6", "icmpv6", "ipv6-icmp":
		if a.Is6() {
			return flow.ICMPv6, nil
		}
		return flow.ICMP, nil
	case "tcp6":
		return flow.TCP, nil
	case "udp6":
		return flow.UDP, nil
	case "sctp6":
		return flow.SCTP, nil
	case "igmp":
		return 2, nil
	}
	p, err := flow.ParseProtocol(s)
	if err != nil {
		return 0, fmt.Errorf("%.20q is no protocol", s)
	}
	return p, nil
}

// sameFamily reports whether both ends are of one IP version.
func sameFamily(o *flow.Observation) error {
	if o.Original.Src.Is4() != o.Original.Dst.Is4() {
		return errors.New("source and destination are of different IP versions")
	}
	return nil
}

// stamp takes a time stamp, where it can be read.
func stamp(o *flow.Observation, layout, s string) {
	if at, err := time.Parse(layout, s); err == nil && plausible(at) {
		o.Time = at.UnixNano()
	}
}

// plausible holds from 2000 to 2200.
func plausible(at time.Time) bool { return at.Unix() > 946_684_800 && at.Unix() < 7_258_118_400 }

// pod names one end; nil if there is nothing to name.
func pod(namespace, name string) *flow.Endpoint {
	if name == "" {
		return nil
	}
	return &flow.Endpoint{Kind: flow.EndpointPod, Namespace: strings.Clone(namespace), Pod: strings.Clone(name)}
}

// podOf reads namespace/name.
func podOf(s string) *flow.Endpoint {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok {
		return nil
	}
	return pod(namespace, name)
}

// side reads ingress or egress in any case.
func side(s string) flow.Direction {
	d, err := flow.ParseDirection(s)
	if err != nil {
		return flow.DirectionUnknown
	}
	return d
}

// sideText is PolicyRef's.
func sideText(d flow.Direction) string {
	if d == flow.DirectionUnknown {
		return ""
	}
	return d.String()
}
