package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

// entry is written before batches are stored: a collector that is killed knows
// afterwards what it may have stored. It carries what was sealed of the entry before.
type entry struct {
	Sequence uint64            `json:"sequence"` // of the writer's entries, from 1
	Time     int64             `json:"time"`     // Unix milliseconds: before the batches arrive in the store
	Sealed   *sealed           `json:"sealed,omitempty"`
	Keys     []flow.BatchKey   `json:"keys"`
	Batches  []*evidence.Batch `json:"batches"` // without their places in chains
}

// sealed says which batches of an entry were stored, and signs that.
type sealed struct {
	evidence.Signed
	Links []place `json:"links"`
}

// place is a batch's in its agent's chain.
type place struct {
	Index  int           `json:"index"` // in the entry
	Number uint64        `json:"number"`
	Prev   evidence.Hash `json:"prev"`
}

// heads are the newest links when an entry was sealed.
type heads struct {
	Sequence uint64                   `json:"sequence"`
	Last     evidence.Link            `json:"last"`
	Time     int64                    `json:"time"` // of the next entry
	Agents   map[string]evidence.Link `json:"agents"`
}

// stored says for each batch of the entry whether the store took it.
func (e *entry) stored(batches []flow.Batch, duplicate []bool) []bool {
	took := make(map[flow.BatchKey]bool)
	for i := range batches {
		if i >= len(duplicate) || !duplicate[i] {
			took[batches[i].Key] = true
		}
	}
	out := make([]bool, len(e.Keys))
	for i, k := range e.Keys {
		out[i] = took[k]
	}
	return out
}

// section is what was sealed of the entry.
func (e *entry) section(s *sealed) *evidence.Section {
	out := &evidence.Section{Signed: s.Signed}
	for _, p := range s.Links {
		if p.Index < 0 || p.Index >= len(e.Batches) {
			continue // verification misses it
		}
		b := *e.Batches[p.Index]
		b.Number, b.Prev = p.Number, p.Prev
		out.Links = append(out.Links, &b)
	}
	return out
}

// entryID sorts as the sequence does, in its first bytes.
func entryID(sequence uint64, writer string) string {
	const base, digits = 36, 8
	text := strconv.FormatUint(sequence, base)
	return strings.Repeat("0", max(0, digits-len(text))) + text + "/" + writer
}

// maxEntry bounds what an entry may be when it is read: leaves of a million
// flows in a group of batches, each in two namespaces.
const maxEntry = 512 << 20

// marshal writes the entry as JSON, compressed.
func (e *entry) marshal() ([]byte, error) {
	var out bytes.Buffer
	to, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("write evidence: %w", err)
	}
	if err := errors.Join(json.NewEncoder(to).Encode(e), to.Close()); err != nil {
		return nil, fmt.Errorf("write evidence: %w", err)
	}
	return out.Bytes(), nil
}

// parseEntry reads what marshal wrote. It proves nothing.
func parseEntry(body []byte) (*entry, error) {
	from, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxEntry))
	if err != nil {
		return nil, err
	}
	defer from.Close()
	e := &entry{}
	if err := json.NewDecoder(from).Decode(e); err != nil {
		return nil, err
	}
	if len(e.Keys) != len(e.Batches) {
		return nil, fmt.Errorf("%d batches with %d keys", len(e.Batches), len(e.Keys))
	}
	for _, b := range e.Batches {
		if b == nil {
			return nil, errors.New("a batch is missing")
		}
	}
	return e, nil
}
