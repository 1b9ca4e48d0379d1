package clickhouse

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// names knows what keys stand for, as far as an answer needs them.
type names struct {
	s    *Store
	keys map[uint64]*flow.Flow // a flow without what a row says
}

func newNames(s *Store) *names { return &names{s: s, keys: make(map[uint64]*flow.Flow)} }

// learn reads the keys of a block of rows that are not known yet.
func (n *names) learn(ctx context.Context, block []row) error {
	var missing []string
	for i := range block {
		if k := block[i].key; n.keys[k] == nil {
			n.keys[k] = &flow.Flow{}
			missing = append(missing, strconv.FormatUint(k, 10))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	rows, err := n.s.conn.Query(ctx, `SELECT id, cluster, node, protocol, port, verdict, direction, reason, expected, assessment, caveat, sources, translated,
		src_addr, src_kind, src_namespace, src_pod, src_workload_kind, src_workload, src_node, src_identity, src_labels, src_candidates,
		dst_addr, dst_kind, dst_namespace, dst_pod, dst_workload_kind, dst_workload, dst_node, dst_identity, dst_labels, dst_candidates,
		service_addr, service_port, service_namespace, service, policies FROM key WHERE id IN (`+strings.Join(missing, ",")+`) LIMIT 1 BY id`)
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		id, f, err := scanKey(rows)
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		n.keys[id] = f
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	return nil
}

// flow puts a row and its key together.
func (n *names) flow(r *row) flow.Flow {
	f := *n.keys[r.key]
	f.Start, f.End = time.UnixMilli(r.start), time.UnixMilli(r.start+int64(r.duration))
	f.SourcePort, f.Connections, f.Counted, f.TCPFlags = r.sourcePort, r.connections, r.counted != 0, r.flags
	f.Sent, f.Received = r.sent, r.gotten
	return f
}

// endColumns are an endpoint's columns as they are scanned.
type endColumns struct {
	addr, labels, candidates string
	kind                     uint8
	e                        flow.Endpoint
}

func (c *endColumns) targets() []any {
	return []any{&c.addr, &c.kind, &c.e.Namespace, &c.e.Pod, &c.e.Workload.Kind, &c.e.Workload.Name, &c.e.Node, &c.e.Identity, &c.labels, &c.candidates}
}

// endpoint is nil where nothing but the address is known.
func (c *endColumns) endpoint() *flow.Endpoint {
	c.e.Kind, c.e.Labels = flow.EndpointKind(c.kind), columns.LabelsOf(c.labels)
	if c.candidates != "" {
		c.e.Candidates = strings.Split(c.candidates, ",")
	}
	if c.e.Kind == flow.EndpointUnknown && c.e.Namespace == "" && c.e.Pod == "" && c.e.Node == "" {
		return nil
	}
	return &c.e
}

func addrOf(text string) netip.Addr { return columns.AddrOf([]byte(text)) }

func scanKey(rows driver.Rows) (id uint64, f *flow.Flow, err error) {
	f = &flow.Flow{}
	var src, dst endColumns
	var protocol, direction, reason, expected, assessment, caveat, sources uint8
	var verdict, translated, serviceAddr, policies string
	var service flow.Service
	targets := []any{&id, &f.Cluster, &f.Node, &protocol, &f.Port, &verdict, &direction, &reason, &expected, &assessment, &caveat, &sources, &translated}
	targets = append(append(targets, src.targets()...), dst.targets()...)
	if err := rows.Scan(append(targets, &serviceAddr, &service.Port, &service.Namespace, &service.Name, &policies)...); err != nil {
		return 0, nil, err
	}
	if f.Verdict, err = flow.ParseVerdict(verdict); err != nil {
		return 0, nil, err
	}
	f.Protocol, f.Direction, f.Reason, f.Expected = flow.Protocol(protocol), flow.Direction(direction), flow.Reason(reason), flow.Verdict(expected)
	f.Assessment, f.Caveat, f.Sources = flow.Assessment(assessment), flow.Caveat(caveat), flow.Source(sources)
	f.Src, f.Dst, f.TranslatedSrc = addrOf(src.addr), addrOf(dst.addr), addrOf(translated)
	f.Source, f.Destination = src.endpoint(), dst.endpoint()
	if service.Addr = addrOf(serviceAddr); service.Addr.IsValid() || service.Name != "" {
		f.Service = &service
	}
	f.Policies = columns.PoliciesOf(policies)
	return id, f, nil
}
