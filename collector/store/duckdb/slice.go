package duckdb

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// slice is one database file: what arrived during a time. Addresses, names and
// everything else that repeats stand once in its dictionaries, so that a flow
// is a narrow row of numbers.
type slice struct {
	name  string // of the attached database
	path  string
	begin time.Time // arrival
	held  atomic.Pointer[content]

	// dict and sums are kept while the slice takes writes.
	dict     *dictionary
	sums     *sums
	unsummed uint64 // how many flows it held when sums could not be made
	// summed says that the table hour has what all its flows add up to.
	summed bool
	// converted says that an older schema became today's when it was opened: such
	// a slice takes no writes.
	converted bool
}

// content says how much a slice holds, in which time: the first start and the
// last end in Unix milliseconds, zero if there are no flows.
type content struct {
	flows      uint64
	start, end int64
}

func (c *content) include(start, end int64) {
	if c.start == 0 || start < c.start {
		c.start = start
	}
	c.end = max(c.end, end)
}

// grow says what a transaction added.
func (sl *slice) grow(added content) {
	all := *sl.held.Load()
	all.flows += added.flows
	if added.start != 0 {
		all.include(added.start, added.end)
	}
	sl.held.Store(&all)
}

// endpointKey tells entries of the endpoint dictionary apart.
type endpointKey struct {
	addr                                                 netip.Addr
	kind                                                 flow.EndpointKind
	identity                                             uint64
	namespace, pod, workloadKind, workload, node, labels string
	candidates                                           string // joined by commas
}

// flowKey tells entries of the key dictionary apart. What has a name or an
// address is a number here, so that looking a flow up is one hash of 40 bytes.
type flowKey struct {
	src, dst   uint32 // endpoints
	origin     uint32
	service    uint32
	translated uint32
	policies   uint32
	port       uint16
	protocol   flow.Protocol
	verdict    flow.Verdict
	expected   flow.Verdict
	direction  flow.Direction
	reason     flow.Reason
	assessment flow.Assessment
	caveat     flow.Caveat
	sources    flow.Source
}

// origin is who reports.
type origin struct{ cluster, node string }

// interned numbers values in the order they come; 0 is the zero value.
type interned[T comparable] struct {
	ids    map[T]uint32
	values []T // from number first on
	first  int
}

func newInterned[T comparable]() interned[T] {
	var zero T
	return interned[T]{ids: map[T]uint32{zero: 0}, values: []T{zero}}
}

// id returns the number of v, and whether it is new.
func (n *interned[T]) id(v T) (id uint32, fresh bool) {
	id, ok := n.ids[v]
	if !ok {
		id = uint32(n.first + len(n.values))
		n.ids[v] = id
		n.values = append(n.values, v)
	}
	return id, !ok
}

// forget keeps the numbers of all values so far, and not which value a number has.
func (n *interned[T]) forget() {
	n.first += len(n.values)
	n.values = nil
}

// dictionary numbers what repeats. What is new since the last commit waits to
// be written with the flows that refer to it.
type dictionary struct {
	endpoints interned[endpointKey]
	keys      interned[flowKey]
	pairs     map[uint64]uint32 // by what all slices know them by: a tenth of the pair itself
	lastPair  uint32
	// These number parts of a key, and are not stored by themselves.
	origins    interned[origin]
	services   interned[flow.Service]
	translated interned[netip.Addr]
	policies   interned[string]

	keyPairs []keyPair // of each key since the last commit
}

// keyPair is the pair of a key: its number in the slice, and what all slices
// know it by.
type keyPair struct {
	number uint32
	id     uint64
}

func newDictionary() *dictionary {
	d := &dictionary{
		endpoints: newInterned[endpointKey](), keys: newInterned[flowKey](), pairs: make(map[uint64]uint32),
		origins: newInterned[origin](), services: newInterned[flow.Service](), translated: newInterned[netip.Addr](), policies: newInterned[string](),
	}
	d.written() // the zero values are in no table
	return d
}

// maxKeys bounds the memory of the open slice's dictionaries: a scan from
// millions of addresses begins a new slice instead.
const maxKeys = 2_000_000

func (d *dictionary) full() bool { return len(d.keys.ids) >= maxKeys }

func (d *dictionary) endpoint(addr netip.Addr, e *flow.Endpoint) uint32 {
	k := endpointKey{addr: addr}
	if e != nil {
		k.kind, k.identity, k.namespace, k.pod = e.Kind, e.Identity, e.Namespace, e.Pod
		k.workloadKind, k.workload, k.node = e.Workload.Kind, e.Workload.Name, e.Node
		k.labels, k.candidates = columns.LabelText(e.Labels), strings.Join(e.Candidates, ",")
	}
	id, _ := d.endpoints.id(k)
	return id
}

func (d *dictionary) key(k flowKey, f *flow.Flow) uint32 {
	id, fresh := d.keys.id(k)
	if fresh {
		pair := columns.PairID(f)
		number, known := d.pairs[pair]
		if !known {
			d.lastPair++
			number = d.lastPair
			d.pairs[pair] = number
		}
		d.keyPairs = append(d.keyPairs, keyPair{number, pair})
	}
	return id
}

// written says that everything is durable.
func (d *dictionary) written() {
	d.endpoints.forget()
	d.keys.forget()
	d.keyPairs = nil
}

// load reads what the slice holds.
func (sl *slice) load(ctx context.Context, db *sql.DB) error {
	if err := db.QueryRowContext(ctx, fmt.Sprintf("SELECT count(*) > 0 FROM %s.hour", sl.name)).Scan(&sl.summed); err != nil {
		return fmt.Errorf("read %s: %w", sl.path, err)
	}
	all := sl.rawSums("true", "true")
	if sl.summed {
		all = "SELECT * FROM " + sl.name + ".hour"
	}
	var c content
	row := db.QueryRowContext(ctx, fmt.Sprintf(`SELECT coalesce(sum(flows), 0)::UBIGINT, coalesce(min(first), 0), coalesce(max(last), 0) FROM (%s)`, all))
	if err := row.Scan(&c.flows, &c.start, &c.end); err != nil {
		return fmt.Errorf("read %s: %w", sl.path, err)
	}
	sl.held.Store(&c)
	return nil
}

// loadDictionary makes a slice ready to take writes after a restart.
func (sl *slice) loadDictionary(ctx context.Context, db *sql.DB) error {
	d := newDictionary()
	if err := d.loadEndpoints(ctx, db, sl); err != nil {
		return fmt.Errorf("read endpoints of %s: %w", sl.path, err)
	}
	if err := d.loadKeys(ctx, db, sl); err != nil {
		return fmt.Errorf("read keys of %s: %w", sl.path, err)
	}
	d.written()
	sl.dict = d
	return nil
}

func (d *dictionary) loadEndpoints(ctx context.Context, db *sql.DB, s *slice) error {
	rows, err := db.QueryContext(ctx, fmt.Sprintf(`SELECT addr, kind, namespace, pod, workload_kind, workload, node, identity, labels, candidates
		FROM %s.endpoint ORDER BY id`, s.name))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var addr []byte
		var k endpointKey
		if err := rows.Scan(&addr, &k.kind, &k.namespace, &k.pod, &k.workloadKind, &k.workload, &k.node, &k.identity, &k.labels, &k.candidates); err != nil {
			return err
		}
		k.addr = columns.AddrOf(addr)
		d.endpoints.id(k)
	}
	return rows.Err()
}

func (d *dictionary) loadKeys(ctx context.Context, db *sql.DB, s *slice) error {
	rows, err := db.QueryContext(ctx, fmt.Sprintf(`SELECT cluster, node, protocol, src, dst, port, verdict, direction, reason, expected,
		assessment, caveat, sources, translated, service_addr, service_port, service_namespace, service, policies, pair, pair_id FROM %s.key ORDER BY id`, s.name))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var o origin
		var translated, serviceAddr []byte
		var service flow.Service
		var policies string
		var k flowKey
		var pair keyPair
		if err := rows.Scan(&o.cluster, &o.node, &k.protocol, &k.src, &k.dst, &k.port, &k.verdict, &k.direction, &k.reason, &k.expected,
			&k.assessment, &k.caveat, &k.sources, &translated, &serviceAddr, &service.Port, &service.Namespace, &service.Name, &policies, &pair.number, &pair.id); err != nil {
			return err
		}
		service.Addr = columns.AddrOf(serviceAddr)
		k.origin, _ = d.origins.id(o)
		k.service, _ = d.services.id(service)
		k.translated, _ = d.translated.id(columns.AddrOf(translated))
		k.policies, _ = d.policies.id(policies)
		d.keys.id(k)
		d.pairs[pair.id] = pair.number
		d.lastPair = max(d.lastPair, pair.number)
	}
	return rows.Err()
}
