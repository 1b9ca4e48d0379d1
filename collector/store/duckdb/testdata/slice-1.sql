-- A slice as it was before versions of the schema were written down: refused flows among the others.
CREATE TABLE endpoint (id UINTEGER, addr BLOB, ip VARCHAR, kind UTINYINT, namespace VARCHAR, pod VARCHAR,
	workload_kind VARCHAR, workload VARCHAR, node VARCHAR, identity UBIGINT, labels VARCHAR, candidates VARCHAR);
CREATE TABLE key (id UINTEGER, cluster VARCHAR, node VARCHAR, protocol UTINYINT, src UINTEGER, dst UINTEGER, port USMALLINT,
	verdict UTINYINT, direction UTINYINT, reason UTINYINT, expected UTINYINT, assessment UTINYINT, caveat UTINYINT, sources UTINYINT, translated BLOB,
	service_addr BLOB, service_ip VARCHAR, service_port USMALLINT, service_namespace VARCHAR, service VARCHAR, policies VARCHAR, policy_names VARCHAR, pair UINTEGER, pair_id UBIGINT);
CREATE TABLE flow (key UINTEGER, start BIGINT, duration UINTEGER, source_port USMALLINT, connections UBIGINT,
	counted UTINYINT, tcp_flags UTINYINT, packets_sent UBIGINT, bytes_sent UBIGINT, packets_received UBIGINT, bytes_received UBIGINT);
CREATE TABLE batch (cluster VARCHAR, instance VARCHAR, epoch UBIGINT, sequence UBIGINT);
CREATE TABLE coverage (node VARCHAR, instance VARCHAR, scope UTINYINT, start BIGINT, "end" BIGINT, limits VARCHAR);
CREATE TABLE gap (node VARCHAR, source VARCHAR, kind UTINYINT, start BIGINT, "end" BIGINT, lost UBIGINT, detail VARCHAR);
INSERT INTO endpoint VALUES
	(0, ''::BLOB, '', 0, '', '', '', '', '', 0, '', ''),
	(1, '\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xFF\xFF\x0A\x00\x00\x01'::BLOB, '10.0.0.1', 1, 'shop', 'web-1', 'Deployment', 'web', 'n1', 11, '', ''),
	(2, '\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xFF\xFF\x0A\x00\x00\x02'::BLOB, '10.0.0.2', 1, 'shop', 'db-0', 'StatefulSet', 'db', 'n1', 12, '', '');
INSERT INTO key VALUES
	(1, 'c', 'n1', 6, 1, 2, 5432, 1, 1, 2, 1, 1, 0, 2, ''::BLOB, ''::BLOB, '', 0, '', '', '', '', 0, 7),
	(2, 'c', 'n1', 6, 1, 2, 22, 2, 1, 1, 2, 2, 0, 1, ''::BLOB, ''::BLOB, '', 0, '', '', '[{"kind":"NetworkPolicy","namespace":"shop","name":"db"}]', 'shop/db', 1, 8);
INSERT INTO flow VALUES
	(1, 1700000000000, 5000, 40000, 3, 1, 2, 6, 600, 6, 6000),
	(2, 1700000001000, 1000, 40001, 2, 1, 2, 2, 120, 0, 0),
	(1, 1700000010000, 5000, 40002, 4, 1, 2, 8, 800, 8, 8000);
INSERT INTO batch VALUES ('c', 'n1', 5, 1);
INSERT INTO coverage VALUES ('n1', 'n1', 0, 1700000000000, 1700000020000, '');
INSERT INTO gap VALUES ('n1', 'conntrack', 1, 1700000002000, 1700000003000, 9, 'the socket was full');
