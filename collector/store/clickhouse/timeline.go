package clickhouse

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

type changeKey struct {
	cluster, namespace, name string
	kind                     flow.ChangeKind
}

func keyOf(c *flow.Change) changeKey { return changeKey{c.Cluster, c.Namespace, c.Name, c.Kind} }

type newestChange struct {
	known, deleted bool
	object         []byte
}

// says reports whether a change says something that the newest does not.
func (n newestChange) says(c *flow.Change) bool {
	if !n.known {
		return !c.Deleted
	}
	return n.deleted != c.Deleted || !bytes.Equal(n.object, c.Object)
}

// Record implements store.Store. What objects became last is asked of the
// database, for other collectors record too.
func (s *Store) Record(ctx context.Context, changes []flow.Change) error {
	if len(changes) == 0 {
		return nil
	}
	newest, err := s.newest(ctx, changes)
	if err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	first := s.newCopies(len(changes))
	told := s.newInsert("change", changeColumns)
	rules := s.newInsert("rule", "time, sequence, cluster, namespace, policy, deleted, name, side, rule, all_pods")
	for i := range changes {
		c := &changes[i]
		if !newest[keyOf(c)].says(c) {
			continue
		}
		newest[keyOf(c)] = newestChange{true, c.Deleted, c.Object}
		sequence := first + uint64(i)
		told.row(sequence, c.Time.UnixMilli(), c.Cluster, uint8(c.Kind), c.Namespace, c.Name, c.Author, boolByte(c.Deleted), string(c.Object))
		if c.Kind == flow.ChangePolicy {
			ruleRows(rules, sequence, c)
		}
	}
	if err := rules.send(ctx); err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	if err := told.send(ctx); err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	return nil
}

func boolByte(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func ruleRows(b *insert, sequence uint64, c *flow.Change) {
	rules := store.Rules(c)
	if len(rules) == 0 {
		b.row(c.Time.UnixMilli(), sequence, c.Cluster, c.Namespace, c.Name, uint8(1), "", "", "", uint8(0)) // none from now on
	}
	for _, r := range rules {
		b.row(c.Time.UnixMilli(), sequence, c.Cluster, c.Namespace, c.Name, uint8(0), columns.RuleName(c.Namespace, c.Name, r.Name), r.Side, r.Name, boolByte(r.AllPods))
	}
}

// newest reads what the objects of changes became last.
func (s *Store) newest(ctx context.Context, changes []flow.Change) (map[changeKey]newestChange, error) {
	out := make(map[changeKey]newestChange)
	const atOnce = 1000
	for len(changes) > 0 {
		n := min(atOnce, len(changes))
		keys := make([]string, n)
		for i, c := range changes[:n] {
			keys[i] = fmt.Sprintf("(%s, %d, %s, %s)", quote(c.Cluster), c.Kind, quote(c.Namespace), quote(c.Name))
		}
		changes = changes[n:]
		rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT cluster, kind, namespace, name, argMax(deleted, (time, sequence)), argMax(object, (time, sequence)) FROM change
			WHERE (cluster, kind, namespace, name) IN (%s) GROUP BY cluster, kind, namespace, name`, strings.Join(keys, ", ")))
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var k changeKey
			var kind, deleted uint8
			var object string
			if err := rows.Scan(&k.cluster, &kind, &k.namespace, &k.name, &deleted, &object); err != nil {
				return nil, err
			}
			k.kind = flow.ChangeKind(kind)
			out[k] = newestChange{true, deleted != 0, []byte(object)}
		}
		if err := closing(rows); err != nil {
			return nil, err
		}
	}
	return out, nil
}

const changeColumns = "sequence, time, cluster, kind, namespace, name, author, deleted, object"

// Timeline implements store.Store.
func (s *Store) Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error {
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a reader that has seen enough ends the query
	rows, err := s.conn.Query(ctx, s.global(fmt.Sprintf(`SELECT %[1]s FROM (
		SELECT %[1]s FROM change WHERE time < %[2]d AND deleted = 0 AND (cluster, kind, namespace, name, time, sequence) IN (%[4]s)
		UNION ALL SELECT %[1]s FROM change WHERE time >= %[2]d AND time <= %[3]d) ORDER BY time, sequence`, changeColumns, from, until.UnixMilli(), newestBefore(from))))
	if err != nil {
		return fmt.Errorf("read timeline: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var c flow.Change
		var sequence uint64
		var ms int64
		var kind, deleted uint8
		var object string
		if err := rows.Scan(&sequence, &ms, &c.Cluster, &kind, &c.Namespace, &c.Name, &c.Author, &deleted, &object); err != nil {
			return fmt.Errorf("read timeline: %w", err)
		}
		c.Time, c.Kind, c.Deleted = time.UnixMilli(ms), flow.ChangeKind(kind), deleted != 0
		if object != "" {
			c.Object = []byte(object)
		}
		if sight.Change(&c) && !yield(c) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read timeline: %w", err)
	}
	return nil
}

// newestBefore selects each object's newest change before a time.
func newestBefore(ms int64) string {
	return fmt.Sprintf(`SELECT cluster, kind, namespace, name, max(time), argMax(sequence, (time, sequence)) FROM change WHERE time < %d GROUP BY cluster, kind, namespace, name`, ms)
}
