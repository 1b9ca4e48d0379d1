package notify

import (
	"context"
	"fmt"
	"time"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// otlp sends log records of OpenTelemetry over HTTP.
type otlp struct{ post *post }

func newOTLP(s *Spec) (*otlp, error) {
	p, err := newPost(s)
	return &otlp{p}, err
}

// Batch implements Sender.
func (*otlp) Batch() int { return 64 }

// Send implements Sender.
func (o *otlp) Send(ctx context.Context, alerts []alert.Alert) error {
	// It is an ExportLogsServiceRequest on the wire, whose package would bring
	// a gateway along.
	data, err := proto.Marshal(logs(alerts, time.Now()))
	if err != nil {
		return refusedError{fmt.Errorf("write log records: %w", err)}
	}
	return o.post.send(ctx, "", "application/x-protobuf", data, nil)
}

func logs(alerts []alert.Alert, now time.Time) *logsv1.LogsData {
	scope := &logsv1.ScopeLogs{Scope: &commonv1.InstrumentationScope{Name: "flowaudit"}}
	for i := range alerts {
		scope.LogRecords = append(scope.LogRecords, logRecord(&alerts[i], now))
	}
	return &logsv1.LogsData{ResourceLogs: []*logsv1.ResourceLogs{{
		Resource:  &resourcev1.Resource{Attributes: []*commonv1.KeyValue{attribute("service.name", "flowaudit-collector")}},
		ScopeLogs: []*logsv1.ScopeLogs{scope},
	}}}
}

func logRecord(a *alert.Alert, now time.Time) *logsv1.LogRecord {
	r := &logsv1.LogRecord{
		TimeUnixNano: uint64(happened(a).UnixNano()), ObservedTimeUnixNano: uint64(now.UnixNano()), EventName: "flowaudit.alert",
		SeverityText: a.Severity, Body: text(a.Summary),
		SeverityNumber: map[string]logsv1.SeverityNumber{
			"info": logsv1.SeverityNumber_SEVERITY_NUMBER_INFO, "warning": logsv1.SeverityNumber_SEVERITY_NUMBER_WARN, "critical": logsv1.SeverityNumber_SEVERITY_NUMBER_ERROR,
		}[a.Severity],
	}
	put := func(key, value string) {
		if value != "" {
			r.Attributes = append(r.Attributes, attribute(key, value))
		}
	}
	put("flowaudit.alert.id", a.ID)
	put("flowaudit.alert.rule", a.Rule)
	put("flowaudit.alert.state", string(a.State))
	put("k8s.cluster.name", a.Cluster)
	if a.From != nil {
		put("source.address", a.From.Address)
		put("flowaudit.source", a.From.String())
	}
	if a.To != nil {
		put("destination.address", a.To.Address)
		put("flowaudit.destination", a.To.String())
	}
	if a.Port != 0 {
		r.Attributes = append(r.Attributes, number("destination.port", int64(a.Port)))
	}
	put("network.transport", a.Protocol)
	put("k8s.node.name", a.Node)
	r.Attributes = append(r.Attributes, number("flowaudit.connections", int64(a.Count)))
	put("flowaudit.since", a.Since.UTC().Format(time.RFC3339Nano))
	put("flowaudit.explanation", a.Explanation)
	put("flowaudit.nearest_miss", a.NearestMiss)
	put("flowaudit.command", a.Command)
	put("flowaudit.detail", a.Detail)
	put("url.full", a.Link)
	if a.Change != nil {
		put("flowaudit.change", a.Change.String())
	}
	return r
}

func text(s string) *commonv1.AnyValue {
	return &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: s}}
}

func attribute(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: text(value)}
}

func number(key string, value int64) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: value}}}
}
