package evidence

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/flowaudit/flowaudit/flow"
)

// AppendFlow appends the one line of JSON that stands for a stored flow: what
// every store gives back of it, in one order and spelling. Its hash is the
// flow's leaf. NamedFrom and NamedTo are not stored, times are milliseconds.
func AppendFlow(b []byte, f *flow.Flow) []byte {
	start, end := times(f.Start, f.End)
	b = append(b, `{"start":`...)
	b = strconv.AppendInt(b, start, 10)
	b = append(b, `,"end":`...)
	b = strconv.AppendInt(b, end, 10)
	b = text(b, "cluster", f.Cluster)
	b = text(b, "node", f.Node)
	b = text(b, "verdict", f.Verdict.String())
	b = text(b, "expected", f.Expected.String())
	b = text(b, "assessment", f.Assessment.String())
	b = text(b, "reason", f.Reason.String())
	b = text(b, "caveat", f.Caveat.String())
	b = text(b, "direction", f.Direction.String())
	b = number(b, "protocol", uint64(f.Protocol))
	b = number(b, "port", uint64(f.Port))
	b = address(b, "src", f.Src)
	b = address(b, "dst", f.Dst)
	b = address(b, "translated_src", f.TranslatedSrc)
	b = number(b, "source_port", uint64(f.SourcePort))
	b = endpoint(b, "source", f.Source)
	b = endpoint(b, "destination", f.Destination)
	b = service(b, f.Service)
	b = policies(b, f.Policies)
	b = number(b, "sources", uint64(f.Sources))
	b = number(b, "connections", f.Connections)
	if f.Counted {
		b = append(b, `,"counted":true`...)
	}
	b = number(b, "packets_sent", f.Sent.Packets)
	b = number(b, "bytes_sent", f.Sent.Bytes)
	b = number(b, "packets_received", f.Received.Packets)
	b = number(b, "bytes_received", f.Received.Bytes)
	b = number(b, "tcp_flags", uint64(f.TCPFlags))
	return append(b, '}')
}

// times are those that a store gives back: it keeps 32 bits of the duration.
func times(from, to time.Time) (start, end int64) {
	start = from.UnixMilli()
	return start, start + min(max(0, to.UnixMilli()-start), 1<<32-1)
}

// Fields without a value are absent.

func number(b []byte, name string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendUint(field(b, name), n, 10)
}

func text(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(field(b, name), s)
}

func address(b []byte, name string, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	b = append(field(b, name), '"')
	b = a.Unmap().WithZone("").AppendTo(b)
	return append(b, '"')
}

func field(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

// endpoint leaves out an end of which nothing but the address is known.
func endpoint(b []byte, name string, e *flow.Endpoint) []byte {
	if e == nil || e.Kind == flow.EndpointUnknown && e.Namespace == "" && e.Pod == "" && e.Node == "" {
		return b
	}
	b = append(field(b, name), '{')
	b = text(b, "kind", e.Kind.String())
	b = text(b, "namespace", e.Namespace)
	b = text(b, "pod", e.Pod)
	b = text(b, "workload_kind", e.Workload.Kind)
	b = text(b, "workload", e.Workload.Name)
	b = text(b, "node", e.Node)
	if e.Identity != 0 {
		const digits = 16
		hex := strconv.FormatUint(e.Identity, 16)
		b = append(field(b, "identity"), '"')
		for range digits - len(hex) {
			b = append(b, '0')
		}
		b = append(append(b, hex...), '"')
	}
	if len(e.Labels) > 0 {
		b = append(field(b, "labels"), '{')
		for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
			if b[len(b)-1] != '{' {
				b = append(b, ',')
			}
			b = append(appendString(b, k), ':')
			b = appendString(b, e.Labels[k])
		}
		b = append(b, '}')
	}
	if len(e.Candidates) > 0 {
		b = append(field(b, "candidates"), '[')
		for i, c := range e.Candidates {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, c)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func service(b []byte, s *flow.Service) []byte {
	if s == nil || !s.Addr.IsValid() && s.Name == "" {
		return b
	}
	b = append(field(b, "service"), '{')
	b = address(b, "addr", s.Addr)
	b = number(b, "port", uint64(s.Port))
	b = text(b, "namespace", s.Namespace)
	b = text(b, "name", s.Name)
	return append(b, '}')
}

func policies(b []byte, refs []flow.PolicyRef) []byte {
	if len(refs) == 0 {
		return b
	}
	b = append(field(b, "policies"), '[')
	for i, r := range refs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		b = text(b, "kind", r.Kind)
		b = text(b, "namespace", r.Namespace)
		b = text(b, "name", r.Name)
		b = text(b, "rule", r.Rule)
		b = text(b, "side", r.Side)
		b = append(b, '}')
	}
	return append(b, ']')
}

// appendString writes a JSON string in one spelling: only what must be is
// escaped, and bytes that are no UTF-8 are U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

// namespaces are those that a flow is of: of its two ends, one or none, which
// is the empty name.
func namespaces(f *flow.Flow) (first, second string) {
	src, dst := namespaceOf(f.Source), namespaceOf(f.Destination)
	switch {
	case src == "":
		return dst, dst
	case dst == "":
		return src, src
	}
	return src, dst
}

func namespaceOf(e *flow.Endpoint) string {
	if e == nil {
		return ""
	}
	return e.Namespace
}
