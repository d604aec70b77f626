-- The logins of the service and of Grafana. Run by psql as the owner after `spanledger migrate`, as often as wanted:
--
--   SPANLEDGER_DATABASE_PASSWORD=… GRAFANA_DATABASE_PASSWORD=… psql -f migrations/logins.sql "$DATABASE_URL"
--
-- It sets the two passwords to those of the environment, so a new password is a second run.
\set ON_ERROR_STOP on
\getenv app_password SPANLEDGER_DATABASE_PASSWORD
\getenv grafana_password GRAFANA_DATABASE_PASSWORD
BEGIN;
SET LOCAL client_min_messages = warning; -- not that a membership is there already

SELECT format('CREATE ROLE %I', login)
FROM unnest(ARRAY['spanledger_app', 'grafana']) AS login
WHERE to_regrole(login) IS NULL \gexec

-- NOINHERIT: the service has the rights of one purpose at a time, by SET ROLE. Postgres 15 knows it of the login only,
-- later ones of each membership.
ALTER ROLE spanledger_app LOGIN NOINHERIT PASSWORD :'app_password';
ALTER ROLE grafana LOGIN INHERIT PASSWORD :'grafana_password';

SELECT :SERVER_VERSION_NUM >= 160000 AS options \gset
\if :options
GRANT spanledger_sink, spanledger_admin, spanledger_reader TO spanledger_app WITH INHERIT FALSE, SET TRUE;
GRANT spanledger_grafana TO grafana WITH INHERIT TRUE;
\else
GRANT spanledger_sink, spanledger_admin, spanledger_reader TO spanledger_app;
GRANT spanledger_grafana TO grafana;
\endif

-- The service looks at the version of the schema when it starts, before it takes any role.
GRANT SELECT ON spanledger_alembic_version TO spanledger_app;

COMMIT;
