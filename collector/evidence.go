package collector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/ledger"
	"github.com/flowaudit/flowaudit/evidence"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// EvidenceOptions say whether and how evidence of flows is kept.
type EvidenceOptions struct {
	Key string // PEM file of the private key; empty for no evidence
	// Collector names the one of many that share a store: it must stay the same.
	Collector string
	Dir       string // of an export's temporary files; empty for the system's
}

// openLedger reads the key; nil if no evidence is to be kept.
func openLedger(o *Options) (*ledger.Ledger, error) {
	if o.Evidence.Key == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.Evidence.Key)
	if err != nil {
		return nil, fmt.Errorf("--evidence-key: %w", err)
	}
	key, err := evidence.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("--evidence-key %s: %w", o.Evidence.Key, err)
	}
	name := o.Evidence.Collector
	if name == "" {
		name = "collector"
	}
	return ledger.New(ledger.Options{Key: key, Store: o.Store, Collector: name, Dir: o.Evidence.Dir, Log: o.Log}), nil
}

// evidenceServer answers the Evidence service.
type evidenceServer struct {
	flowauditv1.UnimplementedEvidenceServer
	ledger *ledger.Ledger // nil if no evidence is kept
	dir    string
}

func (c *collector) evidence() *evidenceServer {
	return &evidenceServer{ledger: c.ledger, dir: c.Evidence.Dir}
}

const exportPart = 256 << 10 // bytes of a message

// Export implements the Evidence service. The bundle is made before it is sent:
// a slow reader keeps nothing of the store busy.
func (s *evidenceServer) Export(req *flowauditv1.ExportRequest, stream flowauditv1.Evidence_ExportServer) error {
	if s.ledger == nil {
		return status.Error(codes.FailedPrecondition, "the collector keeps no evidence: start it with --evidence-key")
	}
	if req.GetEveryone() && req.GetNamespace() != "" {
		return status.Error(codes.InvalidArgument, "all namespaces or one: want either")
	}
	scope := evidence.Scope{Everyone: req.GetEveryone(), Namespace: req.GetNamespace()}
	if ms := req.GetSince(); ms > 0 {
		scope.Since = time.UnixMilli(ms)
	}
	if ms := req.GetUntil(); ms > 0 {
		scope.Until = time.UnixMilli(ms)
	}
	if !scope.Until.IsZero() && scope.Until.Before(scope.Since) {
		return status.Error(codes.InvalidArgument, "the time ends before it begins")
	}
	bundle, err := ledger.Temporary(s.dir)
	if err != nil {
		return status.Errorf(codes.Internal, "export evidence: %v", err)
	}
	defer bundle.Close()
	if err := s.ledger.Export(stream.Context(), bundle, scope); errors.Is(err, ledger.ErrTooMany) {
		return status.Error(codes.InvalidArgument, err.Error())
	} else if err != nil {
		return storeError("export evidence", err)
	}
	if _, err := bundle.Seek(0, io.SeekStart); err != nil {
		return status.Errorf(codes.Internal, "export evidence: %v", err)
	}
	part := make([]byte, exportPart)
	for {
		n, err := bundle.Read(part)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.Errorf(codes.Internal, "export evidence: %v", err)
		}
		if err := stream.Send(&flowauditv1.ExportResponse{Part: part[:n]}); err != nil {
			return err
		}
	}
}

// appender is where batches are stored: with evidence, if it is kept.
func (c *collector) appender() appender {
	if c.ledger == nil {
		return c.Store
	}
	return c.ledger
}

// buryBefore says before flows are deleted that they will be.
func (c *collector) buryBefore(ctx context.Context, now time.Time) error {
	if c.ledger == nil {
		return nil
	}
	k := c.Retain.kept(now)
	flows, denied := k.Since, k.DeniedSince()
	if k.Bytes > 0 {
		stats, err := c.Store.Stats(ctx)
		if err != nil {
			return err
		}
		// What went for its size is what is older than the oldest that is left.
		flows, denied = later(flows, stats.Arrived), later(denied, stats.Arrived)
	}
	if err := c.ledger.Bury(ctx, flows, denied); err != nil {
		return err
	}
	return c.ledger.Discard(ctx, k.DeniedSince())
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
