package collector

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func export(t *testing.T, r *running, req *flowauditv1.ExportRequest) ([]byte, error) {
	t.Helper()
	stream, err := flowauditv1.NewEvidenceClient(r.conn).Export(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var bundle bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return bundle.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		bundle.Write(part.GetPart())
	}
}

func TestABundleProvesWhatAgentsHaveSent(t *testing.T) {
	private, public, err := evidence.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := evidence.ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, private, 0o600); err != nil {
		t.Fatal(err)
	}
	m := &memory{}
	for sequence := range uint64(2) { // the second is a collector that was started again
		r := serveWith(t, m, Options{Evidence: EvidenceOptions{Key: key}})
		stream := r.report(t)
		send(t, stream, batchOf(1, flowTo(1, flow.VerdictDenied)), batchOf(sequence+2, flowTo(2, flow.VerdictAllowed)))
		receiveAck(t, stream)
		receiveAck(t, stream)
		if sequence == 1 {
			bundle, err := export(t, r, &flowauditv1.ExportRequest{Everyone: true})
			if err != nil {
				t.Fatal(err)
			}
			s, err := evidence.Verify(bytes.NewReader(bundle), int64(len(bundle)), pub)
			if err != nil || s.Batches != 3 || s.Agents != 1 || s.Flows < 3 {
				t.Errorf("%+v, %v: want three batches of one agent", s, err)
			}
			if _, err := export(t, r, &flowauditv1.ExportRequest{Since: 2, Until: 1}); status.Code(err) != codes.InvalidArgument {
				t.Errorf("a time that ends before it begins: %v", err)
			}
		}
		r.close(t)
	}
}

func TestWithoutAKeyThereIsNoEvidence(t *testing.T) {
	r := serve(t, &memory{})
	defer r.close(t)
	if _, err := export(t, r, &flowauditv1.ExportRequest{Everyone: true}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v, want that a key is missing", err)
	}
}

func TestAKeyThatCannotBeUsedIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{path, path + ".none"} {
		if _, err := openLedger(&Options{Evidence: EvidenceOptions{Key: file}}); err == nil {
			t.Errorf("%s was taken for a key", file)
		}
	}
}
