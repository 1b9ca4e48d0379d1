package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
)

// printer shows flows in one format.
type printer interface {
	print(f *flow.Flow) error
	flush() error
}

type printOptions struct {
	location *time.Location
	colors   bool
	headers  bool
}

func newPrinter(format string, w io.Writer, o printOptions) (printer, error) {
	if template, ok := strings.CutPrefix(format, "jsonpath="); ok {
		return newPathPrinter(template, w)
	}
	b := bufio.NewWriter(w)
	format = strings.ToLower(format)
	switch format {
	case "compact", "":
		return &linePrinter{b, func(f *flow.Flow) ([]byte, error) { return compactLine(f, o), nil }}, nil
	case "json", "jsonpb":
		return &linePrinter{b, func(f *flow.Flow) ([]byte, error) {
			line, err := json.Marshal(f)
			return append(line, '\n'), err
		}}, nil
	case "yaml":
		return &linePrinter{b, func(f *flow.Flow) ([]byte, error) {
			text, err := yaml.Marshal(f)
			return append([]byte("---\n"), text...), err
		}}, nil
	case "table", "wide":
		return newTablePrinter(w, format == "wide", o), nil
	}
	return nil, fmt.Errorf("--output %q: want compact, table, wide, json, yaml or jsonpath=TEMPLATE", format)
}

// linePrinter writes each flow by itself.
type linePrinter struct {
	w      *bufio.Writer
	format func(*flow.Flow) ([]byte, error)
}

func (p *linePrinter) print(f *flow.Flow) error {
	b, err := p.format(f)
	if err != nil {
		return fmt.Errorf("format flow: %w", err)
	}
	_, err = p.w.Write(b)
	return err
}

func (p *linePrinter) flush() error { return p.w.Flush() }

// pathPrinter applies a template of kubectl's language to each flow's JSON.
func newPathPrinter(template string, w io.Writer) (printer, error) {
	path := jsonpath.New("output").AllowMissingKeys(true)
	if !strings.Contains(template, "{") {
		template = "{" + template + "}{\"\\n\"}"
	}
	if err := path.Parse(template); err != nil {
		return nil, fmt.Errorf("--output jsonpath: %w", err)
	}
	return &linePrinter{bufio.NewWriter(w), func(f *flow.Flow) ([]byte, error) {
		text, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		var data any
		if err := json.Unmarshal(text, &data); err != nil {
			return nil, err
		}
		var out bytes.Buffer
		err = path.Execute(&out, data)
		return out.Bytes(), err
	}}, nil
}

// compactLine is one flow at a glance.
func compactLine(f *flow.Flow, o printOptions) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  %s  %s -> %s  %s", f.Start.In(o.location).Format("Jan _2 15:04:05.000"), o.colored(verdictColor(f.Verdict), fmt.Sprintf("%-10s", verdictText(f))),
		sourceName(f), destinationName(f), protocolText(f))
	if f.Connections != 1 {
		fmt.Fprintf(&b, " x%d", f.Connections)
	}
	if f.Service != nil {
		fmt.Fprintf(&b, "  via %s", serviceName(f.Service))
	}
	if f.Counted && f.Verdict != flow.VerdictDenied {
		fmt.Fprintf(&b, "  %s out, %s in", bytesText(f.Sent.Bytes), bytesText(f.Received.Bytes))
	}
	if why := whyText(f); why != "" {
		fmt.Fprintf(&b, "  (%s)", why)
	}
	if f.Assessment == flow.AssessmentUnenforced || f.Assessment == flow.AssessmentUnexplained {
		fmt.Fprintf(&b, "  %s", strings.ToUpper(f.Assessment.String()))
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// whyText is the reason of a verdict, and the policies that deny the flow. A
// reply needs no explanation.
func whyText(f *flow.Flow) string {
	var parts []string
	if f.Reason != flow.ReasonNone && f.Reason != flow.ReasonReply {
		parts = append(parts, f.Reason.String())
	}
	if f.Expected == flow.VerdictDenied {
		if names := policiesText(f.Policies); names != "" {
			parts = append(parts, "denied by "+names)
		}
	}
	return strings.Join(parts, ", ")
}

// placeText is empty for a place that is not known.
func placeText(p flow.Place) string {
	if p == flow.PlaceUnknown {
		return ""
	}
	return p.String()
}

// policiesText names policies, each once.
func policiesText(refs []flow.PolicyRef) string {
	var names []string
	for _, r := range refs {
		name := strings.TrimPrefix(r.Namespace+"/"+r.Name, "/")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// ANSI colours of verdicts, as traffic lights have them. All are of one length:
// the table's columns are aligned with them.
const (
	red, green, yellow, foreground = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[39m"
	plainColor                     = "\x1b[0m"
)

func verdictColor(v flow.Verdict) string {
	switch v {
	case flow.VerdictDenied:
		return red
	case flow.VerdictAllowed:
		return green
	case flow.VerdictUnanswered:
		return yellow
	}
	return foreground
}

// colored gives the text a colour where colours are wanted.
func (o printOptions) colored(color, text string) string {
	if !o.colors {
		return text
	}
	return color + text + plainColor
}

func verdictText(f *flow.Flow) string { return strings.ToUpper(f.Verdict.String()) }

func sourceName(f *flow.Flow) string {
	name := endName(f.Source, f.Src)
	if f.SourcePort != 0 {
		name += ":" + strconv.Itoa(int(f.SourcePort))
	}
	return name
}

func destinationName(f *flow.Flow) string {
	name := endName(f.Destination, f.Dst)
	if f.Protocol.HasPorts() {
		name += ":" + strconv.Itoa(int(f.Port))
	}
	return name
}

// endName is the pod, else what the address is known as, with the address.
func endName(e *flow.Endpoint, addr netip.Addr) string {
	ip := addr.String()
	switch {
	case addr.Is6():
		ip = "([" + ip + "])"
	case addr.IsValid():
		ip = "(" + ip + ")"
	default:
		ip = "" // only the name is known
	}
	switch {
	case e != nil && e.Kind == flow.EndpointUnknown && e.Namespace != "":
		return e.Namespace + "/…" // the reader may not read more of it
	case e == nil && !addr.IsValid():
		return "…"
	case e == nil || e.Kind == flow.EndpointUnknown:
		return strings.Trim(ip, "()")
	case e.Kind == flow.EndpointPod:
		return e.Namespace + "/" + cmp.Or(e.Pod, e.Workload.Name) + ip
	case e.Kind == flow.EndpointNode:
		return "node/" + e.Node + ip
	}
	if !addr.IsValid() && e.Workload.Name != "" {
		return e.Kind.String() + "/" + e.Workload.Name
	}
	return e.Kind.String() + ip
}

func protocolText(f *flow.Flow) string {
	text := strings.ToUpper(f.Protocol.String())
	if f.Protocol.IsICMP() {
		if typ, code := f.ICMP(); typ != flow.ICMPUnknown {
			text += fmt.Sprintf(" type %d code %d", typ, code)
		}
	}
	if names := flow.TCPFlagNames(f.TCPFlags); len(names) > 0 {
		text += " " + strings.Join(names, ",")
	}
	return text
}

func serviceName(s *flow.Service) string {
	if s.Name == "" {
		return fmt.Sprintf("%s:%d", s.Addr, s.Port)
	}
	return fmt.Sprintf("%s/%s:%d", s.Namespace, s.Name, s.Port)
}

// bytesText is a size as people say it.
func bytesText(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, prefix := float64(n)/unit, 0
	for v >= unit && prefix < 5 {
		v /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[prefix])
}

// tablePrinter aligns columns. It writes a block at a time, so that following
// shows flows as they come.
type tablePrinter struct {
	w       *tabwriter.Writer
	wide    bool
	o       printOptions
	started bool
}

func newTablePrinter(w io.Writer, wide bool, o printOptions) *tablePrinter {
	return &tablePrinter{w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0), wide: wide, o: o}
}

func (p *tablePrinter) print(f *flow.Flow) error {
	if !p.started && p.o.headers {
		headers := []string{"TIME", p.o.colored(foreground, "VERDICT"), "SOURCE", "DESTINATION", "PORT", "PROTOCOL", "CONNECTIONS", "BYTES", "REASON", "REFUSED AT"}
		if p.wide {
			headers = append(headers, "EXPECTED", "ASSESSMENT", "POLICIES", "DIRECTION", "NODE", "SERVICE", "SOURCE WORKLOAD", "DESTINATION WORKLOAD", "SOURCE LABELS", "DESTINATION LABELS", "FLAGS")
		}
		if _, err := fmt.Fprintln(p.w, strings.Join(headers, "\t")); err != nil {
			return err
		}
	}
	p.started = true
	port := strconv.Itoa(int(f.Port))
	if f.Protocol.IsICMP() {
		typ, code := f.ICMP()
		if port = fmt.Sprintf("%d/%d", typ, code); typ == flow.ICMPUnknown {
			port = "-"
		}
	}
	size := "-"
	if f.Counted {
		size = bytesText(f.Sent.Bytes + f.Received.Bytes)
	}
	cells := []string{
		f.Start.In(p.o.location).Format("2006-01-02 15:04:05.000"), p.o.colored(verdictColor(f.Verdict), verdictText(f)),
		endName(f.Source, f.Src), endName(f.Destination, f.Dst), port, f.Protocol.String(),
		strconv.FormatUint(f.Connections, 10), size, orDash(f.Reason.String()), orDash(placeText(f.RefusedAt())),
	}
	if p.wide {
		service := "-"
		if f.Service != nil {
			service = serviceName(f.Service)
		}
		assessment := f.Assessment.String()
		if f.Caveat != flow.CaveatNone {
			assessment += " (" + f.Caveat.String() + ")"
		}
		cells = append(cells, f.Expected.String(), assessment, orDash(policiesText(f.Policies)), f.Direction.String(), orDash(f.Node), service, workloadText(f.Source), workloadText(f.Destination),
			labelsText(f.Source), labelsText(f.Destination), orDash(strings.Join(flow.TCPFlagNames(f.TCPFlags), ",")))
	}
	_, err := fmt.Fprintln(p.w, strings.Join(cells, "\t"))
	return err
}

func (p *tablePrinter) flush() error { return p.w.Flush() }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func workloadText(e *flow.Endpoint) string {
	if e == nil || e.Workload.Name == "" {
		return "-"
	}
	return e.Workload.Kind + "/" + e.Workload.Name
}

func labelsText(e *flow.Endpoint) string {
	if e == nil || len(e.Labels) == 0 {
		return "-"
	}
	var out []string
	for k, v := range e.Labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
