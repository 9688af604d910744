<?php

declare(strict_types=1);

require_once __DIR__ . '/autoload.php';

$app = new Illuminate\Foundation\Application(dirname(__DIR__));
// Everything that is written goes to one place, so that the folder itself can stay read-only.
$storage = getenv('APP_STORAGE') ?: dirname(__DIR__) . '/storage';
foreach (['framework/cache', 'framework/sessions', 'framework/views', 'logs', 'bootstrap'] as $name) {
    is_dir("$storage/$name") || mkdir("$storage/$name", 0755, true);
}
$app->useStoragePath($storage);
foreach (['SERVICES', 'PACKAGES', 'CONFIG', 'ROUTES', 'EVENTS'] as $name) {
    $_ENV["APP_{$name}_CACHE"] = "$storage/bootstrap/" . strtolower($name) . '.php';
}
$app->singleton(Illuminate\Contracts\Http\Kernel::class, App\Http\Kernel::class);
$app->singleton(Illuminate\Contracts\Console\Kernel::class, App\Console\Kernel::class);
$app->singleton(Illuminate\Contracts\Debug\ExceptionHandler::class, App\Exceptions\Handler::class);
// Debian keeps the framework's own configuration where the framework does not look for it.
if (method_exists($app, 'dontMergeFrameworkConfiguration')) {
    $app->dontMergeFrameworkConfiguration();
}

return $app;
