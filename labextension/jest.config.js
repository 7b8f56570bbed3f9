/** Runs the tests of what needs no browser: the model, the feed, and what components say. */
module.exports = {
  testEnvironment: 'node',
  testMatch: ['<rootDir>/tests/**/*.spec.{ts,tsx}'],
  testTimeout: 10000,
  transform: {
    '^.+\\.tsx?$': [
      'ts-jest',
      {
        tsconfig: {
          ...require('./tsconfig.json').compilerOptions,
          module: 'commonjs',
          moduleResolution: 'node',
          rootDir: '.',
          types: ['jest']
        }
      }
    ]
  }
};
