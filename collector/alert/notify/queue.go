package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// queue holds what a target was not told yet, a file each, so that a restart
// loses nothing. It belongs to the target's worker and the dispatcher's lock.
type queue struct {
	dir   string
	items []*item // oldest first
	next  uint64
}

// item is a notification.
type item struct {
	Alert  alert.Alert `json:"alert"`
	Queued time.Time   `json:"queued"`
	number uint64
}

// maxQueued is how many notifications wait at most; the oldest are given up.
const maxQueued = 10_000

const itemSuffix = ".json"

// openQueue reads what waits. A file that cannot be read is set aside.
func openQueue(dir string) (q *queue, broken []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make queue: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read queue: %w", err)
	}
	q = &queue{dir: dir}
	for _, e := range entries {
		number, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), itemSuffix), 10, 64)
		if err != nil || !strings.HasSuffix(e.Name(), itemSuffix) {
			continue
		}
		q.next = max(q.next, number+1)
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		i := &item{number: number}
		if err == nil {
			err = json.Unmarshal(text, i)
		}
		if err != nil {
			broken = append(broken, e.Name())
			_ = os.Rename(filepath.Join(dir, e.Name()), filepath.Join(dir, e.Name()+".broken")) // it is told of anyway
			continue
		}
		q.items = append(q.items, i)
	}
	slices.SortFunc(q.items, func(a, b *item) int { return int(a.number) - int(b.number) })
	return q, broken, nil
}

// holds reports whether an alert in its present state waits already.
func (q *queue) holds(a *alert.Alert) bool {
	return slices.ContainsFunc(q.items, func(i *item) bool {
		return i.Alert.ID == a.ID && i.Alert.State == a.State && i.Alert.Started.Equal(a.Started)
	})
}

// push keeps an alert. It is in the queue also when the disk refuses it.
func (q *queue) push(a alert.Alert, now time.Time) (gaveUp *item, err error) {
	i := &item{Alert: a, Queued: now, number: q.next}
	q.next++
	q.items = append(q.items, i)
	if len(q.items) > maxQueued {
		gaveUp = q.items[0]
		q.remove(gaveUp)
	}
	text, err := json.Marshal(i)
	if err != nil {
		return gaveUp, fmt.Errorf("keep notification: %w", err)
	}
	path := q.path(i)
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return gaveUp, fmt.Errorf("keep notification: %w", err)
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return gaveUp, fmt.Errorf("keep notification: %w", err)
	}
	return gaveUp, nil
}

func (q *queue) path(i *item) string {
	return filepath.Join(q.dir, fmt.Sprintf("%020d%s", i.number, itemSuffix))
}

// remove takes a notification out.
func (q *queue) remove(i *item) {
	q.items = slices.DeleteFunc(q.items, func(o *item) bool { return o == i })
	_ = os.Remove(q.path(i)) // what stays is told twice at worst
}
