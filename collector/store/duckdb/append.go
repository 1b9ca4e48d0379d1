package duckdb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// Append implements store.Store: one transaction of one file.
func (s *Store) Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.failed {
		if err := s.recover(ctx); err != nil {
			return nil, fmt.Errorf("recover from a write that failed: %w", err)
		}
	}
	if err := s.roll(ctx); err != nil {
		s.failed = true
		return nil, err
	}
	duplicate = make([]bool, len(batches))
	var fresh []*flow.Batch
	coming := make(map[flow.BatchKey]bool)
	for i := range batches {
		k := batches[i].Key
		if duplicate[i] = s.keys.has(k) || coming[k]; !duplicate[i] {
			coming[k] = true
			fresh = append(fresh, &batches[i])
		}
	}
	if len(fresh) == 0 {
		return duplicate, nil
	}
	sl := s.last()
	added, err := s.commit(ctx, sl, fresh)
	if err != nil {
		s.failed = true
		return nil, err
	}
	sl.dict.written()
	for _, b := range fresh {
		s.keys.add(b.Key)
	}
	sl.grow(added)
	s.reported.add(fresh, sl)
	s.sumUp(ctx, sl)
	return duplicate, nil
}

func (s *Store) commit(ctx context.Context, sl *slice, batches []*flow.Batch) (added content, err error) {
	err = s.writer.transaction(ctx, func() error {
		if added, err = s.appendFlows(sl, batches); err != nil {
			return err
		}
		return s.appendRest(sl, batches)
	})
	if err != nil {
		return added, fmt.Errorf("write to %s: %w", sl.path, unstorable(err))
	}
	return added, nil
}

// unstorable marks errors that say that a value is none that DuckDB can hold.
func unstorable(err error) error {
	var e *duckdb.Error
	if errors.As(err, &e) && slices.Contains([]duckdb.ErrorType{
		duckdb.ErrorTypeConversion, duckdb.ErrorTypeOutOfRange, duckdb.ErrorTypeInvalidInput, duckdb.ErrorTypeConstraint, duckdb.ErrorTypeObjectSize,
	}, e.Type) {
		return fmt.Errorf("%w: %w", store.ErrBatch, err)
	}
	return err
}

// appendFlows writes refused flows into a table of their own: questions about
// them must not read all the others.
func (s *Store) appendFlows(sl *slice, batches []*flow.Batch) (added content, err error) {
	others, err := s.writer.appender(sl.name, "flow", &s.writer.allowed)
	if err != nil {
		return added, err
	}
	denied, err := s.writer.appender(sl.name, "denied", &s.writer.denied)
	if err != nil {
		return added, errors.Join(err, others.close())
	}
	for _, b := range batches {
		ids := newBatchIDs(sl.dict)
		for i := range b.Flows {
			f := &b.Flows[i]
			to := others
			if f.Verdict == flow.VerdictDenied {
				to = denied
			}
			if err := to.add(ids.key(f), f); err != nil {
				return added, errors.Join(err, others.close(), denied.close())
			}
			added.include(f.Start.UnixMilli(), f.End.UnixMilli())
		}
		added.flows += uint64(len(b.Flows))
	}
	return added, errors.Join(others.close(), denied.close())
}

// batchIDs numbers the ends and origins of a batch's flows. Flows of a batch
// share these by pointer, so that names are looked at once a batch.
type batchIDs struct {
	dict     *dictionary
	ends     map[end]uint32
	services map[*flow.Service]uint32
	origin   origin
	originID uint32
}

type end struct {
	addr     netip.Addr
	endpoint *flow.Endpoint
}

func newBatchIDs(d *dictionary) *batchIDs {
	return &batchIDs{dict: d, ends: make(map[end]uint32), services: make(map[*flow.Service]uint32)}
}

func (b *batchIDs) end(addr netip.Addr, e *flow.Endpoint) uint32 {
	k := end{addr, e}
	id, ok := b.ends[k]
	if !ok {
		id = b.dict.endpoint(addr, e)
		b.ends[k] = id
	}
	return id
}

func (b *batchIDs) service(s *flow.Service) uint32 {
	if s == nil {
		return 0
	}
	id, ok := b.services[s]
	if !ok {
		id, _ = b.dict.services.id(*s)
		b.services[s] = id
	}
	return id
}

func (b *batchIDs) key(f *flow.Flow) uint32 {
	if o := (origin{f.Cluster, f.Node}); b.originID == 0 || o != b.origin {
		b.origin = o
		b.originID, _ = b.dict.origins.id(o)
	}
	k := flowKey{
		src: b.end(f.Src, f.Source), dst: b.end(f.Dst, f.Destination), origin: b.originID, service: b.service(f.Service),
		port: f.Port, protocol: f.Protocol, verdict: f.Verdict, expected: f.Expected, direction: f.Direction, reason: f.Reason,
		assessment: f.Assessment, caveat: f.Caveat, sources: f.Sources,
	}
	if f.TranslatedSrc.IsValid() {
		k.translated, _ = b.dict.translated.id(f.TranslatedSrc)
	}
	if len(f.Policies) > 0 {
		k.policies, _ = b.dict.policies.id(columns.PoliciesText(f.Policies))
	}
	return b.dict.key(k, f)
}

// appendRest writes the new dictionary entries, the batches' keys, their
// coverage and gaps.
func (s *Store) appendRest(sl *slice, batches []*flow.Batch) error {
	var keys, coverage, gaps [][]driver.Value
	for _, b := range batches {
		keys = append(keys, []driver.Value{b.Key.Cluster, b.Key.Instance, b.Key.Epoch, b.Key.Sequence})
		if b.End.After(b.Start) {
			coverage = append(coverage, []driver.Value{
				b.Node, b.Key.Instance, uint8(b.Scope), b.Start.UnixMilli(), b.End.UnixMilli(), columns.LimitsText(b.Agent.Limits),
			})
		}
		for _, g := range b.Gaps {
			gaps = append(gaps, []driver.Value{g.Node, g.Source, uint8(g.Kind), g.Start.UnixMilli(), g.End.UnixMilli(), g.Lost, g.Detail})
		}
	}
	for _, t := range []struct {
		name string
		rows [][]driver.Value
	}{
		{"endpoint", sl.dict.endpointRows()},
		{"key", sl.dict.keyRows()},
		{"batch", keys},
		{"coverage", coverage},
		{"gap", gaps},
	} {
		if err := s.writer.insertRows(sl.name, t.name, t.rows); err != nil {
			return err
		}
	}
	return nil
}

func (d *dictionary) endpointRows() [][]driver.Value {
	var rows [][]driver.Value
	for i, k := range d.endpoints.values {
		rows = append(rows, []driver.Value{
			uint32(d.endpoints.first + i), columns.AddrBytes(k.addr), k.addr.String(), uint8(k.kind), k.namespace, k.pod, k.workloadKind, k.workload, k.node,
			k.identity, k.labels, k.candidates,
		})
	}
	return rows
}

func (d *dictionary) keyRows() [][]driver.Value {
	var rows [][]driver.Value
	for i, k := range d.keys.values {
		o, service := d.origins.values[k.origin], d.services.values[k.service]
		rows = append(rows, []driver.Value{
			uint32(d.keys.first + i), o.cluster, o.node, uint8(k.protocol), k.src, k.dst, k.port, uint8(k.verdict), uint8(k.direction), uint8(k.reason),
			uint8(k.expected), uint8(k.assessment), uint8(k.caveat), uint8(k.sources), columns.AddrBytes(d.translated.values[k.translated]), columns.AddrBytes(service.Addr), addrText(service.Addr), service.Port,
			service.Namespace, service.Name, d.policies.values[k.policies], columns.PolicyNames(columns.PoliciesOf(d.policies.values[k.policies])), d.keyPairs[i].number, d.keyPairs[i].id,
		})
	}
	return rows
}

// addrText is empty for no address.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
