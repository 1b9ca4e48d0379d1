-- A month of edges as it was before versions of the schema were written down.
CREATE TABLE edge (id UINTEGER, cluster VARCHAR, protocol UTINYINT, port USMALLINT, direction UTINYINT, verdict UTINYINT,
	expected UTINYINT, assessment UTINYINT, caveat UTINYINT, exempt UTINYINT, seen BLOB,
	src_kind UTINYINT, src_identity UBIGINT, src_namespace VARCHAR, src_workload_kind VARCHAR, src_workload VARCHAR, src_node VARCHAR, src_addr BLOB, src_bits UTINYINT, src_labels VARCHAR, src_ip VARCHAR,
	dst_kind UTINYINT, dst_identity UBIGINT, dst_namespace VARCHAR, dst_workload_kind VARCHAR, dst_workload VARCHAR, dst_node VARCHAR, dst_addr BLOB, dst_bits UTINYINT, dst_labels VARCHAR, dst_ip VARCHAR);
CREATE TABLE hour (edge UINTEGER, hour UINTEGER, first BIGINT, last BIGINT, connections UBIGINT, sent UBIGINT, received UBIGINT);
CREATE TABLE source (slice VARCHAR);
INSERT INTO edge VALUES (0, 'c', 6, 443, 1, 1, 1, 1, 0, 0, ''::BLOB, 1, 11, 'shop', 'Deployment', 'web', '', ''::BLOB, 0, '', '',
	4, 0, '', '', '', '', '\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xFF\xFF\xCB\x00\x71\x07'::BLOB, 32, '', '203.0.113.7');
INSERT INTO hour VALUES (0, 472221, 1699995600000, 1699995700000, 8, 80, 800);
INSERT INTO source VALUES ('slice_1699995000000');
